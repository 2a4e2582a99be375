package siem

import (
	"fmt"
	"math/rand"
	"slices"
	"strings"
	"testing"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	siemv1 "github.com/siem-relay/siem-relay/clients/go/siem/v1"
)

func coreOf(t *testing.T, options PublisherOptions) *publishCore {
	core, err := newPublishCore(options, highest)
	must(t, err)
	return core
}

func itemOf(t *testing.T, event *siemv1.Event) *item {
	added, err := newItem(event)
	must(t, err)
	return added
}

// model is a server that rejects, refuses and disconnects at random, with a clock of its own.
type model struct {
	t           *testing.T
	random      *rand.Rand
	core        *publishCore
	devices     int
	now         time.Time
	unanswered  []*siemv1.PublishStreamRequest
	accepted    []string
	maxInFlight int
	// Events with a temporary rejection since their last final answer, by device and number.
	deferred map[string]map[int]bool
}

func deviceAndNumber(id string) (device string, number int) {
	device, text, _ := strings.Cut(id, "-")
	fmt.Sscan(text, &number)
	return device, number
}

// received checks a request, and keeps it unanswered. An event must not be sent before an earlier one of its device that
// was rejected temporarily.
func (m *model) received(request *siemv1.PublishStreamRequest) {
	encoded, err := proto.Marshal(request)
	must(m.t, err)
	if len(encoded) > m.core.options.MaxBatchBytes {
		m.t.Fatalf("a request of %d bytes", len(encoded))
	}
	m.unanswered = append(m.unanswered, decoded(m.t, request))
	m.maxInFlight = max(m.maxInFlight, len(m.unanswered))
	ahead := map[string]bool{}
	for _, each := range m.unanswered {
		for _, sent := range each.GetEvents() {
			device, number := deviceAndNumber(sent.GetEventId())
			for earlier := range m.deferred[device] {
				if each == m.unanswered[len(m.unanswered)-1] && earlier < number && !ahead[fmt.Sprintf("%s-%d", device, earlier)] {
					m.t.Fatalf("%s-%d was sent before the rejected event %d", device, number, earlier)
				}
			}
			ahead[sent.GetEventId()] = true
		}
	}
}

// answered notes the answer to an event.
func (m *model) answered(id string, temporary bool) {
	device, number := deviceAndNumber(id)
	if m.deferred[device] == nil {
		m.deferred[device] = map[int]bool{}
	}
	if temporary {
		m.deferred[device][number] = true
	} else {
		delete(m.deferred[device], number)
	}
}

// decoded returns a request as a server reads it.
func decoded(t *testing.T, request *siemv1.PublishStreamRequest) *siemv1.PublishStreamRequest {
	encoded, err := proto.Marshal(request)
	must(t, err)
	result := &siemv1.PublishStreamRequest{}
	must(t, proto.Unmarshal(encoded, result))
	return result
}

func (m *model) answer() {
	request := m.unanswered[0]
	m.unanswered = m.unanswered[1:]
	answer := &siemv1.PublishStreamResponse{RequestId: request.GetRequestId()}
	poisoned := slices.ContainsFunc(request.GetEvents(), func(each *siemv1.Event) bool {
		return each.GetIdsDetection().GetSignature() == "detection 13"
	})
	if poisoned && m.devices == 3 {
		answer.Outcome = &siemv1.PublishStreamResponse_Error{Error: &spb.Status{Code: int32(codes.InvalidArgument)}}
	} else {
		result := &siemv1.PublishResponse{}
		// A device whose first event is rejected keeps its order only if the later ones are rejected too.
		full := map[string]bool{}
		for _, each := range request.GetEvents() {
			if m.random.Float64() < 0.1 {
				full[each.GetDeviceId()] = true
			}
		}
		for index, each := range request.GetEvents() {
			m.answered(each.GetEventId(), full[each.GetDeviceId()])
			reason := siemv1.ErrorReason_ERROR_REASON_UNSPECIFIED
			switch {
			case full[each.GetDeviceId()] && m.random.Intn(2) == 0:
				reason = siemv1.ErrorReason_ERROR_REASON_OVERLOADED
			case full[each.GetDeviceId()]:
				reason = siemv1.ErrorReason_ERROR_REASON_RATE_LIMITED
			case strings.HasSuffix(each.GetIdsDetection().GetSignature(), "7"):
				reason = siemv1.ErrorReason_ERROR_REASON_INVALID_FIELD
			default:
				m.accepted = append(m.accepted, each.GetEventId())
				continue
			}
			result.Rejections = append(result.Rejections, &siemv1.Rejection{Index: uint32(index), Reason: reason})
		}
		answer.Outcome = &siemv1.PublishStreamResponse_Result{Result: result}
	}
	if failure := m.core.answered(answer, m.now); failure != nil {
		m.reopen(failure)
	}
}

func (m *model) reopen(failure *Error) {
	m.unanswered = nil
	wait, _, final := m.core.broke(failure, m.now, false)
	if final != nil {
		m.t.Fatal(final)
	}
	m.now = m.now.Add(wait)
}

func (m *model) step() {
	chance := m.random.Float64()
	switch {
	case chance < 0.05:
		// The answers are lost, although the events were accepted.
		for _, request := range m.unanswered {
			for _, each := range request.GetEvents() {
				m.accepted = append(m.accepted, each.GetEventId())
			}
		}
		m.reopen(newError(codes.Unavailable, "planned"))
	case chance < 0.5 && len(m.unanswered) > 0:
		m.answer()
	default:
		request := m.core.nextRequest(m.now)
		if request == nil {
			m.now = m.now.Add(50 * time.Millisecond)
			return
		}
		m.received(request)
	}
}

func TestEveryEventGetsOneAnswerAndDevicesKeepTheirOrder(t *testing.T) {
	for seed := 0; seed < 300; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { checkModel(t, seed) })
	}
}

func checkModel(t *testing.T, seed int) {
	const total = 60
	// With one request in flight no later event of a device can overtake a rejected one.
	options := PublisherOptions{MaxRequestsInFlight: 4, MaxBatchEvents: 4, GiveUpAfter: -1}
	single := seed%2 == 0
	if single {
		options.MaxRequestsInFlight = 1
	}
	m := &model{
		t: t, random: rand.New(rand.NewSource(int64(seed))), core: coreOf(t, options), devices: seed%3 + 1,
		now: time.Unix(0, 0), deferred: map[string]map[int]bool{},
	}
	var sent []*item
	for number := 0; number < total; number++ {
		added := itemOf(t, event(number, fmt.Sprintf("device%d", number%m.devices), "acme", 0))
		sent = append(sent, added)
		m.core.add(added, m.now)
		for left := m.random.Intn(4); left > 0; left-- {
			m.step()
		}
	}
	m.core.flush()
	for left := 20_000; left > 0 && !m.core.isDone(); left-- {
		m.step()
	}
	if !m.core.isDone() || m.core.bytes != 0 || len(m.core.unanswered()) > 0 || !m.core.isAnswered(total) {
		t.Fatalf("seed %d: %+v, %d bytes", seed, m.core.stats, m.core.bytes)
	}
	if m.maxInFlight > options.MaxRequestsInFlight {
		t.Fatalf("seed %d: %d requests in flight", seed, m.maxInFlight)
	}
	last := map[string]int{}
	first := map[string]bool{}
	for _, id := range m.accepted {
		if first[id] {
			continue
		}
		first[id] = true
		device, number := deviceAndNumber(id)
		if single && m.devices != 3 && number < last[device] {
			t.Fatalf("seed %d: %s was accepted after %d", seed, id, last[device])
		}
		last[device] = number
	}
	for number, each := range sent {
		select {
		case <-each.answer.done:
		default:
			t.Fatalf("seed %d: event %d has no answer", seed, number)
		}
		id := each.event().GetEventId()
		final := number%10 == 7 || (number == 13 && m.devices == 3)
		outcome := each.answer.result.Outcome
		if (final && !first[id] && outcome != OutcomeRejected) || (!final && outcome != OutcomeAccepted) {
			t.Fatalf("seed %d: event %d is %v", seed, number, outcome)
		}
	}
}

func requestsOf(t *testing.T, core *publishCore) []*siemv1.PublishStreamRequest {
	var requests []*siemv1.PublishStreamRequest
	for {
		request := core.nextRequest(time.Unix(1e9, 0))
		if request == nil {
			return requests
		}
		requests = append(requests, request)
	}
}

func TestRequestsStayBelowTheLimitsWithTheirFraming(t *testing.T) {
	core := coreOf(t, PublisherOptions{MaxRequestsInFlight: 64})
	now := time.Unix(0, 0)
	for number := 0; number < 9; number++ {
		core.add(itemOf(t, event(number, "device", "acme", 1<<20-80)), now)
	}
	for number := 0; number < 2_500; number++ {
		core.add(itemOf(t, event(number, "device", "acme", 0)), now)
	}
	// Of these, a thousand with their framing exceed the limit by little.
	for number := 0; number < 3_000; number++ {
		size := 4_192 - proto.Size(event(number, "device", "acme", 4_000)) + 4_000
		core.add(itemOf(t, event(number, "device", "acme", size)), now)
	}
	core.flush()
	requests := requestsOf(t, core)
	total := 0
	for _, request := range requests {
		encoded, err := proto.Marshal(request)
		must(t, err)
		count := len(decoded(t, request).GetEvents())
		if len(encoded) > maxBytes || count > maxEvents {
			t.Fatalf("a request of %d bytes and %d events", len(encoded), count)
		}
		total += count
	}
	equal(t, "events", total, 5_509)
	// As few requests as the limits allow, but for the last of each kind.
	if len(requests) > 10 {
		t.Fatalf("%d requests", len(requests))
	}
}

func TestRequestsCarryOneOrganizationWhileThereAreFew(t *testing.T) {
	for organizations, wanted := range map[int]int{8: 8, 9: 1} {
		core := coreOf(t, PublisherOptions{MaxRequestsInFlight: 64})
		for number := 0; number < 40; number++ {
			organization := fmt.Sprintf("org%d", number%organizations)
			core.add(itemOf(t, event(number, "device", organization, 0)), time.Unix(0, 0))
		}
		equal(t, "requests", len(requestsOf(t, core)), wanted)
	}
}

func TestOutcomesThatAreOnlyCounted(t *testing.T) {
	for _, each := range []struct {
		organizations int
		response      *siemv1.PublishResponse
		outcome       Outcome
	}{
		{1, &siemv1.PublishResponse{Accepted: 9}, OutcomeAccepted},
		{1, &siemv1.PublishResponse{Unconfigured: 9}, OutcomeUnconfigured},
		{1, &siemv1.PublishResponse{Filtered: 9}, OutcomeFiltered},
		{9, &siemv1.PublishResponse{Accepted: 5, Unconfigured: 4}, OutcomeUndetermined},
	} {
		core := coreOf(t, PublisherOptions{})
		var items []*item
		for number := 0; number < 9; number++ {
			items = append(items, itemOf(t, event(number, "device", fmt.Sprintf("org%d", number%each.organizations), 0)))
			core.add(items[number], time.Unix(0, 0))
		}
		requestsOf(t, core)
		answer := &siemv1.PublishStreamResponse{
			RequestId: "1", Outcome: &siemv1.PublishStreamResponse_Result{Result: each.response},
		}
		if failure := core.answered(answer, time.Unix(0, 0)); failure != nil {
			t.Fatal(failure)
		}
		equal(t, "outcome", items[0].answer.result.Outcome, each.outcome)
	}
}

func TestAnswersThatFitNoRequestBreakTheStream(t *testing.T) {
	core := coreOf(t, PublisherOptions{})
	core.add(itemOf(t, event(1, "device", "acme", 0)), time.Unix(0, 0))
	requestsOf(t, core)
	for _, answer := range []*siemv1.PublishStreamResponse{{RequestId: "2"}, {RequestId: "1"}, {}} {
		if failure := core.answered(answer, time.Unix(0, 0)); failure == nil || failure.Code != codes.Internal {
			t.Fatal(answer, failure)
		}
	}
	// Indexes beyond the request are ignored.
	answer := &siemv1.PublishStreamResponse{RequestId: "1", Outcome: &siemv1.PublishStreamResponse_Result{
		Result: &siemv1.PublishResponse{Accepted: 1, Rejections: []*siemv1.Rejection{{Index: 1 << 31}}},
	}}
	if failure := core.answered(answer, time.Unix(0, 0)); failure != nil || core.stats.Accepted != 1 {
		t.Fatal(failure, core.stats)
	}
}

func TestThePublisherGivesUpAfterATimeWithoutProgress(t *testing.T) {
	core := coreOf(t, PublisherOptions{GiveUpAfter: 10 * time.Second})
	now := time.Unix(0, 0)
	core.add(itemOf(t, event(1, "device", "acme", 0)), now)
	for {
		wait, _, final := core.broke(newError(codes.Unavailable, "planned"), now, false)
		if final != nil {
			if !strings.Contains(final.Message, "gave up after 10s without progress") {
				t.Fatal(final)
			}
			break
		}
		if wait <= 0 || wait > 5*time.Second {
			t.Fatal(wait)
		}
		now = now.Add(wait)
	}
	equal(t, "time", now, time.Unix(10, 0))
}

func TestThePublisherNeverSendsEarlierThanTheServerAsks(t *testing.T) {
	core := coreOf(t, PublisherOptions{MaxRetryWait: time.Second})
	core.add(itemOf(t, event(1, "device", "acme", 0)), time.Unix(0, 0))
	failure := newError(codes.ResourceExhausted, "planned")
	delay := 30 * time.Second
	failure.RetryDelay = &delay
	wait, _, _ := core.broke(failure, time.Unix(0, 0), false)
	equal(t, "wait", wait, 37500*time.Millisecond)
}

func TestDeferredEventsWaitLongerEachTime(t *testing.T) {
	core := coreOf(t, PublisherOptions{Linger: -1, MaxBatchBytes: 20_000})
	now := time.Unix(0, 0)
	// More than one request, although they wait together.
	const events = 100
	for number := 0; number < events; number++ {
		core.add(itemOf(t, event(number, fmt.Sprintf("device%d", number), "acme", 1_000)), now)
	}
	for _, wait := range []time.Duration{0, 100, 200, 400} {
		wait *= time.Millisecond
		if wait > 0 {
			if core.nextRequest(now.Add(wait-1)) != nil {
				t.Fatal("sent before", wait)
			}
		}
		now = now.Add(wait)
		total := 0
		for total < events {
			request := core.nextRequest(now)
			if request == nil {
				t.Fatalf("%d events after %v", total, wait)
			}
			encoded, err := proto.Marshal(request)
			must(t, err)
			if len(encoded) > 20_000 {
				t.Fatalf("a request of %d bytes", len(encoded))
			}
			response := &siemv1.PublishResponse{}
			for index := range decoded(t, request).GetEvents() {
				total++
				response.Rejections = append(response.Rejections, &siemv1.Rejection{
					Index: uint32(index), Reason: siemv1.ErrorReason_ERROR_REASON_OVERLOADED,
				})
			}
			if failure := core.answered(&siemv1.PublishStreamResponse{
				RequestId: request.GetRequestId(), Outcome: &siemv1.PublishStreamResponse_Result{Result: response},
			}, now); failure != nil {
				t.Fatal(failure)
			}
		}
	}
	equal(t, "rejections", core.stats.Deferred, 4*events)
}
