package siem

import (
	"container/heap"
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	siemv1 "github.com/siem-relay/siem-relay/clients/go/siem/v1"
)

const (
	maxEvents         = 1_000
	maxBytes          = 4 << 20
	maxRequestsInSend = 64
	// Memory of one event beside its encoded bytes: the item, its answer and its place in the queues.
	eventOverheadBytes = 1_024
	// Bytes of a request_id with its tag and length; the id is a number.
	requestIDBytes = 24
	// Number of the field events in PublishStreamRequest.
	eventsField = 2
	// Up to this number of organizations at a time, each request carries events of one, since an answer only counts the
	// events of organizations without an integration.
	separateOrganizations = 8
)

// PublisherOptions has the limits and waits of a publisher. The zero value of a field means its default.
type PublisherOptions struct {
	// MaxRequestsInFlight is the number of unanswered requests, 1 to 64. Default: 16.
	MaxRequestsInFlight int
	// MaxBytesInFlight is the memory for unanswered events; Send waits beyond it. Each event counts 1 KiB more than its
	// encoded size. One event alone may exceed it. Default: 16 MiB.
	MaxBytesInFlight int
	// MaxBatchEvents is the number of events of one request, 1 to 1,000. Default: 1,000.
	MaxBatchEvents int
	// MaxBatchBytes is the size of one request with its framing, at most 4 MiB. A larger event is sent alone.
	// Default: 4 MiB.
	MaxBatchBytes int
	// Linger is the longest time for which the first event of a request waits for further ones. Negative for none.
	// Default: 10 ms.
	Linger time.Duration
	// MinRetryWait is the wait after the first failure, or the first temporary rejection of an event of a device; doubled
	// with each further one in a row. Default: 100 ms.
	MinRetryWait time.Duration
	// MaxRetryWait is the longest wait, unless the server asks for a longer one. Default: 5 s.
	MaxRetryWait time.Duration
	// GiveUpAfter is the time without any final answer after which the publisher ends with an error. Negative for never.
	// Default: 300 s.
	GiveUpAfter time.Duration
	// AnswerTimeout is the time without an answer after which the stream is opened again. Default: 60 s.
	AnswerTimeout time.Duration
}

func (o PublisherOptions) withDefaults() (PublisherOptions, error) {
	for _, each := range []struct {
		name           string
		value          *int
		fallback, high int
	}{
		{"MaxRequestsInFlight", &o.MaxRequestsInFlight, 16, maxRequestsInSend},
		{"MaxBytesInFlight", &o.MaxBytesInFlight, 16 << 20, math.MaxInt},
		{"MaxBatchEvents", &o.MaxBatchEvents, maxEvents, maxEvents},
		{"MaxBatchBytes", &o.MaxBatchBytes, maxBytes, maxBytes},
	} {
		if *each.value == 0 {
			*each.value = each.fallback
		}
		if *each.value < 1 || *each.value > each.high {
			return o, configurationError("%s: %d is not in the range from 1 to %d", each.name, *each.value, each.high)
		}
	}
	if o.AnswerTimeout < 0 {
		return o, configurationError("AnswerTimeout: %v is negative", o.AnswerTimeout)
	}
	for _, each := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{
		{&o.Linger, 10 * time.Millisecond},
		{&o.GiveUpAfter, 300 * time.Second},
		{&o.AnswerTimeout, 60 * time.Second},
	} {
		if *each.value == 0 {
			*each.value = each.fallback
		}
	}
	o.Linger = max(o.Linger, 0)
	return o, nil
}

// Outcome is a final answer to an event.
type Outcome int

const (
	// OutcomeAccepted means that the event is durable.
	OutcomeAccepted Outcome = iota + 1
	// OutcomeUnconfigured means that its organization has no integration; it is not stored.
	OutcomeUnconfigured
	// OutcomeFiltered means that a filter of its integration left it out; it is not stored.
	OutcomeFiltered
	// OutcomeUndetermined is one of the three above: the answer only counts, and differs between the events of the
	// request.
	OutcomeUndetermined
	// OutcomeRejected means that it is invalid; see the rejection.
	OutcomeRejected
)

// String returns the name, such as "accepted".
func (o Outcome) String() string {
	switch o {
	case OutcomeAccepted:
		return "accepted"
	case OutcomeUnconfigured:
		return "unconfigured"
	case OutcomeFiltered:
		return "filtered"
	case OutcomeUndetermined:
		return "undetermined"
	case OutcomeRejected:
		return "rejected"
	default:
		return "unknown"
	}
}

// PublishResult is the final answer to one event.
type PublishResult struct {
	// Outcome is the answer.
	Outcome Outcome
	// Rejection has reason, field and message of a rejected event; else it is nil. Its index is 0.
	Rejection *siemv1.Rejection
}

// PublisherStats counts since the publisher was made.
type PublisherStats struct {
	// Accepted is the number of events that are durable.
	Accepted uint64
	// Unconfigured is the number of events of organizations without an integration.
	Unconfigured uint64
	// Rejected is the number of events that were rejected for good.
	Rejected uint64
	// Filtered is the number of events that a filter left out.
	Filtered uint64
	// Undetermined is the number of events with OutcomeUndetermined.
	Undetermined uint64
	// Deferred is the number of temporary rejections; each event counts as often as it was rejected.
	Deferred uint64
	// Reconnects is the number of streams that broke while events were unanswered.
	Reconnects uint64
	// Pending is the number of events without a final answer.
	Pending uint64
}

// Answer is the final answer to one event, once it is there. It may be dropped.
type Answer struct {
	done   chan struct{}
	result PublishResult
	err    error
}

// Done returns a channel that is closed when the answer is there.
func (a *Answer) Done() <-chan struct{} { return a.done }

// Get waits for the answer. It returns the error of the context, or that which ended the publisher.
func (a *Answer) Get(ctx context.Context) (PublishResult, error) {
	select {
	case <-a.done:
		return a.result, a.err
	default:
	}
	select {
	case <-a.done:
		return a.result, a.err
	case <-ctx.Done():
		return PublishResult{}, ctx.Err()
	}
}

func (a *Answer) resolve(result PublishResult, err error) {
	a.result, a.err = result, err
	close(a.done)
}

type deviceKey struct{ organization, network, device string }

// item is one encoded event.
type item struct {
	data   []byte
	device deviceKey
	answer *Answer
	// Number in the order of sending.
	order uint64
}

func newItem(event *siemv1.Event) (*item, error) {
	data, err := proto.Marshal(event)
	if err != nil {
		return nil, configurationError("the event cannot be encoded: %v", err)
	}
	key := deviceKey{event.GetOrganizationId(), event.GetNetworkId(), event.GetDeviceId()}
	return &item{data: data, device: key, answer: &Answer{done: make(chan struct{})}}, nil
}

// framed returns the bytes within a request.
func (i *item) framed() int {
	return protowire.SizeTag(eventsField) + protowire.SizeBytes(len(i.data))
}

// weight returns the memory that it takes.
func (i *item) weight() int { return len(i.data) + eventOverheadBytes }

func (i *item) event() *siemv1.Event {
	event := new(siemv1.Event)
	// These bytes are of proto.Marshal.
	_ = proto.Unmarshal(i.data, event)
	return event
}

// encodeRequest returns a request of events that are encoded already: as unknown fields, whose bytes are sent as they are.
func encodeRequest(id uint64, items []*item) *siemv1.PublishStreamRequest {
	size := 0
	for _, each := range items {
		size += each.framed()
	}
	raw := make([]byte, 0, size)
	for _, each := range items {
		raw = protowire.AppendTag(raw, eventsField, protowire.BytesType)
		raw = protowire.AppendBytes(raw, each.data)
	}
	request := &siemv1.PublishStreamRequest{RequestId: strconv.FormatUint(id, 10)}
	request.ProtoReflect().SetUnknown(raw)
	return request
}

// deferredDevice is a device with deferred events. At most one request at a time carries events of it.
type deferredDevice struct {
	// Its deferred events.
	waiting []*item
	// Number of its events in the window.
	inWindow int
	// Those in the window were sent again, so that they precede all deferred ones, unless one of them was rejected again.
	resent bool
	// One of those that were last in the window was rejected temporarily, or got its final answer.
	rejected, progress bool
	// Attempts in a row without progress.
	failures int
}

func (d *deferredDevice) sort() {
	slices.SortFunc(d.waiting, func(a, b *item) int {
		if a.order < b.order {
			return -1
		}
		return 1
	})
}

// dueDevice is a device that may send again at a time.
type dueDevice struct {
	at    time.Time
	order uint64
	key   deviceKey
}

type dueHeap []dueDevice

func (h dueHeap) Len() int { return len(h) }
func (h dueHeap) Less(i, j int) bool {
	return h[i].at.Before(h[j].at) || (h[i].at.Equal(h[j].at) && h[i].order < h[j].order)
}
func (h dueHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *dueHeap) Push(due any) { *h = append(*h, due.(dueDevice)) }
func (h *dueHeap) Pop() any {
	last := len(*h) - 1
	due := (*h)[last]
	*h = (*h)[:last]
	return due
}

// publishCore has the requests, acknowledgements and order of a publisher, which guards it by a lock. No I/O and no clock;
// times are arguments.
//
// Events pass through: pending (not yet in a request), the window (requests that are to be sent or unanswered), and
// deferred (rejected temporarily, or behind such an event of their device).
type publishCore struct {
	options PublisherOptions
	retry   RetryOptions
	uniform uniform
	stats   PublisherStats
	bytes   int

	orders       uint64
	pending      []*item
	pendingBytes int
	lingerUntil  time.Time
	// Events up to this order do not linger.
	flushed uint64

	window [][]*item
	// Number of requests in the window that are sent on the current stream.
	sent    int
	frontID uint64
	// Requests with smaller ids are sent one at a time, to find the one that breaks the stream.
	singlyBelow uint64

	devices map[deviceKey]*deferredDevice
	due     dueHeap

	failures   int
	refreshed  bool
	progressAt time.Time
	answerDue  time.Time
}

func newPublishCore(options PublisherOptions, uniform uniform) (*publishCore, error) {
	options, err := options.withDefaults()
	if err != nil {
		return nil, err
	}
	retry, err := RetryOptions{options.MinRetryWait, options.MaxRetryWait}.withDefaults()
	if err != nil {
		return nil, err
	}
	return &publishCore{
		options: options, retry: retry, uniform: uniform, frontID: 1, devices: map[deviceKey]*deferredDevice{},
	}, nil
}

// hasCapacity returns whether memory is left for an event.
func (c *publishCore) hasCapacity(weight int) bool {
	return c.bytes == 0 || c.bytes+weight <= c.options.MaxBytesInFlight
}

// add takes an event. It returns whether that changes the time of the next request.
func (c *publishCore) add(added *item, now time.Time) bool {
	if c.isDone() {
		c.progressAt = now
	}
	c.orders++
	added.order = c.orders
	wasFull := c.isFull()
	if len(c.pending) == 0 {
		c.lingerUntil = now.Add(c.options.Linger)
	}
	c.pending = append(c.pending, added)
	c.pendingBytes += added.framed()
	c.bytes += added.weight()
	c.stats.Pending++
	return len(c.pending) == 1 || c.isFull() != wasFull
}

// flush ends the linger of what is pending. It returns the order of the last event.
func (c *publishCore) flush() uint64 {
	c.flushed = c.orders
	return c.orders
}

// isDone returns whether every event has its final answer.
func (c *publishCore) isDone() bool { return c.stats.Pending == 0 }

// unanswered returns all events without a final answer, in the order of sending.
func (c *publishCore) unanswered() []*item {
	all := deferredDevice{waiting: slices.Clone(c.pending)}
	for _, batch := range c.window {
		all.waiting = append(all.waiting, batch...)
	}
	for _, device := range c.devices {
		all.waiting = append(all.waiting, device.waiting...)
	}
	all.sort()
	return all.waiting
}

// isAnswered returns whether all events up to an order have their final answer.
func (c *publishCore) isAnswered(order uint64) bool {
	early := func(each *item) bool { return each.order <= order }
	if len(c.pending) > 0 && early(c.pending[0]) {
		return false
	}
	for _, batch := range c.window {
		if slices.ContainsFunc(batch, early) {
			return false
		}
	}
	for _, device := range c.devices {
		if slices.ContainsFunc(device.waiting, early) {
			return false
		}
	}
	return true
}

// isFull returns whether the pending events fill a request.
func (c *publishCore) isFull() bool {
	return len(c.pending) >= c.options.MaxBatchEvents || c.pendingBytes >= c.options.MaxBatchBytes-requestIDBytes
}

func (c *publishCore) isReady(now time.Time) bool {
	if len(c.pending) == 0 {
		return false
	}
	return c.isFull() || !now.Before(c.lingerUntil) || c.pending[0].order <= c.flushed
}

// takePending moves the pending events of one request, or of a few, to the window.
func (c *publishCore) takePending(now time.Time) {
	var batch []*item
	taken, size := 0, requestIDBytes
	for _, next := range c.pending {
		if len(batch) >= c.options.MaxBatchEvents || (len(batch) > 0 && size+next.framed() > c.options.MaxBatchBytes) {
			break
		}
		taken++
		c.pendingBytes -= next.framed()
		if device := c.devices[next.device]; device != nil {
			device.waiting = append(device.waiting, next)
		} else {
			batch = append(batch, next)
			size += next.framed()
		}
	}
	clear(c.pending[:taken])
	if c.pending = c.pending[taken:]; len(c.pending) == 0 {
		c.pending = nil
	}
	c.lingerUntil = now.Add(c.options.Linger)
	var organizations []string
	groups := map[string][]*item{}
	for _, each := range batch {
		name := each.device.organization
		if _, ok := groups[name]; !ok {
			organizations = append(organizations, name)
		}
		groups[name] = append(groups[name], each)
	}
	if len(organizations) > separateOrganizations {
		c.window = append(c.window, batch)
		return
	}
	for _, name := range organizations {
		c.window = append(c.window, groups[name])
	}
}

// nextRequest returns the next request to send on the current stream; nil if there is none.
func (c *publishCore) nextRequest(now time.Time) *siemv1.PublishStreamRequest {
	for len(c.window) < c.options.MaxRequestsInFlight {
		if len(c.due) > 0 && !c.due[0].at.After(now) {
			if batch := c.takeDue(now); len(batch) > 0 {
				c.window = append(c.window, batch)
			}
			continue
		}
		if !c.isReady(now) {
			break
		}
		c.takePending(now)
	}
	if c.sent >= min(len(c.window), c.options.MaxRequestsInFlight) {
		return nil
	}
	if c.frontID < c.singlyBelow && c.sent > 0 {
		return nil
	}
	if c.sent == 0 {
		c.answerDue = now.Add(c.options.AnswerTimeout)
	}
	request := encodeRequest(c.frontID+uint64(c.sent), c.window[c.sent])
	c.sent++
	return request
}

// nextWakeup returns the time of the next request that needs no answer and no event; zero if there is none.
func (c *publishCore) nextWakeup() time.Time {
	var next time.Time
	if len(c.window) < c.options.MaxRequestsInFlight {
		if len(c.due) > 0 {
			next = c.due[0].at
		}
		if len(c.pending) > 0 && (next.IsZero() || c.lingerUntil.Before(next)) {
			next = c.lingerUntil
		}
	}
	return next
}

// overdueIn returns the time after which the server has not answered for too long; not positive if it has not.
func (c *publishCore) overdueIn(now time.Time) time.Duration {
	if c.sent == 0 {
		return c.options.AnswerTimeout
	}
	return c.answerDue.Sub(now)
}

// answered takes an answer. With an error the stream cannot continue.
func (c *publishCore) answered(answer *siemv1.PublishStreamResponse, now time.Time) *Error {
	if c.sent == 0 || answer.GetRequestId() != strconv.FormatUint(c.frontID, 10) {
		return newError(codes.Internal, "the server sent an answer to another request")
	}
	c.answerDue = now.Add(c.options.AnswerTimeout)
	c.refreshed = false
	switch outcome := answer.GetOutcome().(type) {
	case *siemv1.PublishStreamResponse_Result:
		c.failures = 0
		if c.settle(outcome.Result, now, false) == 0 && c.left(now) <= 0 {
			failure := newError(codes.ResourceExhausted, "the server rejected events temporarily until the publisher gave up")
			failure.RetryDelay = new(time.Duration)
			return failure
		}
		return nil
	case *siemv1.PublishStreamResponse_Error:
		failure := fromStatus(status.FromProto(outcome.Error))
		if !isRefusal(failure, true) {
			return failure
		}
		if len(c.window[0]) > 1 {
			// The next stream carries both halves, so that the others are not refused with the event at fault.
			c.split()
			return newError(codes.Unavailable, fmt.Sprintf("a request was refused as a whole: %v", failure))
		}
		c.failures = 0
		c.refuse(failure, now)
		return nil
	default:
		return newError(codes.Internal, "the server sent an answer without an outcome")
	}
}

// isFinal returns whether a stream that failed so fails again however often it is opened.
func isFinal(code codes.Code) bool {
	switch code {
	case codes.Unimplemented, codes.Unauthenticated, codes.PermissionDenied, codes.NotFound:
		return true
	default:
		return false
	}
}

// isBadRequest returns whether the request is at fault.
func isBadRequest(code codes.Code) bool {
	switch code {
	case codes.InvalidArgument, codes.OutOfRange, codes.FailedPrecondition:
		return true
	default:
		return false
	}
}

// isRefusal returns whether a request of events is at fault and would fail again. Answered requests failed alone, without
// their stream.
func isRefusal(failure *Error, answered bool) bool {
	if failure.RetryDelay != nil {
		return false
	}
	if isBadRequest(failure.Code) || failure.Code == codes.ResourceExhausted {
		return true
	}
	return answered && (isFinal(failure.Code) || failure.Code == codes.AlreadyExists)
}

// broke takes the end of a stream. It returns the wait until the next stream, which is 0 with refresh: it then follows
// at once with a new bearer token. With an error the publisher must end.
func (c *publishCore) broke(failure *Error, now time.Time, tokenCanChange bool) (wait time.Duration, refresh bool, err *Error) {
	inFlight := c.sent
	c.sent = 0
	defer c.reclaim(now)
	if failure.Code == codes.Unauthenticated && tokenCanChange && !c.refreshed {
		c.refreshed = true
		return 0, true, nil
	}
	if isFinal(failure.Code) {
		return 0, false, failure
	}
	if inFlight > 0 && isRefusal(failure, false) {
		switch {
		case inFlight > 1:
			c.singlyBelow = c.frontID + uint64(inFlight)
		case len(c.window[0]) > 1:
			c.split()
		default:
			c.refuse(failure, now)
		}
	}
	if c.isDone() {
		return 0, false, nil
	}
	c.stats.Reconnects++
	left := c.left(now)
	if left <= 0 {
		stalled := now.Sub(c.progressAt).Round(time.Second)
		final := newError(failure.Code, fmt.Sprintf("gave up after %v without progress: %v", stalled, failure))
		final.Reason, final.ReasonName, final.cause = failure.Reason, failure.ReasonName, failure
		return 0, false, final
	}
	wait = c.retry.wait(failure, c.failures, c.uniform)
	if failure.RetryDelay == nil {
		wait = min(wait, left)
	}
	c.failures++
	return wait, false, nil
}

func (c *publishCore) left(now time.Time) time.Duration {
	if c.options.GiveUpAfter < 0 {
		return math.MaxInt64
	}
	return c.options.GiveUpAfter - now.Sub(c.progressAt)
}

// split halves the oldest request.
func (c *publishCore) split() {
	half := len(c.window[0]) / 2
	halves := [][]*item{c.window[0][:half:half], c.window[0][half:]}
	c.window = append(halves, c.window[1:]...)
	c.singlyBelow = c.frontID + 2
}

// refuse settles the oldest request, of one event, with an error.
func (c *publishCore) refuse(failure *Error, now time.Time) {
	rejection := &siemv1.Rejection{Reason: failure.Reason, Message: failure.Error()}
	if len(failure.Violations) > 0 {
		rejection.Field, rejection.Message = failure.Violations[0].Field, failure.Violations[0].Description
	}
	// The reason is final here, whatever it is for single events.
	c.settle(&siemv1.PublishResponse{Rejections: []*siemv1.Rejection{rejection}}, now, true)
}

func isTemporaryRejection(reason siemv1.ErrorReason) bool {
	return reason == siemv1.ErrorReason_ERROR_REASON_OVERLOADED || reason == siemv1.ErrorReason_ERROR_REASON_RATE_LIMITED
}

// settle settles the oldest request; all rejections of it are final if that is given. Events that were rejected temporarily
// are deferred. It returns the number of final answers.
func (c *publishCore) settle(response *siemv1.PublishResponse, now time.Time, final bool) int {
	batch := c.window[0]
	c.window[0] = nil
	c.window = c.window[1:]
	c.frontID++
	c.sent = max(c.sent-1, 0)
	rejections := make(map[uint32]*siemv1.Rejection, len(response.GetRejections()))
	for _, each := range response.GetRejections() {
		if each.GetIndex() < uint32(len(batch)) {
			rejections[each.GetIndex()] = each
		}
	}
	kept := OutcomeAccepted
	if response.GetUnconfigured() > 0 || response.GetFiltered() > 0 {
		valid := len(batch) - len(rejections)
		switch {
		case int(response.GetUnconfigured()) >= valid:
			kept = OutcomeUnconfigured
		case int(response.GetFiltered()) >= valid:
			kept = OutcomeFiltered
		default:
			kept = OutcomeUndetermined
		}
	}
	for _, each := range batch {
		if device := c.devices[each.device]; device != nil {
			device.inWindow--
		}
	}
	answers, deferred := 0, false
	touched := map[deviceKey]bool{}
	opened := map[deviceKey]bool{}
	for index, each := range batch {
		device := c.devices[each.device]
		rejection := rejections[uint32(index)]
		if rejection != nil && !final && isTemporaryRejection(rejection.GetReason()) {
			if device == nil {
				device = new(deferredDevice)
				c.devices[each.device] = device
				opened[each.device] = true
			}
			device.rejected = true
			device.waiting = append(device.waiting, each)
			touched[each.device] = true
			deferred = true
			c.stats.Deferred++
			continue
		}
		if device != nil {
			device.progress = true
			touched[each.device] = true
		}
		answers++
		if rejection == nil {
			c.resolve(each, PublishResult{Outcome: kept})
		} else {
			rejection.Index = 0
			c.resolve(each, PublishResult{Outcome: OutcomeRejected, Rejection: rejection})
		}
	}
	if deferred {
		for _, request := range c.window {
			for _, each := range request {
				if opened[each.device] {
					c.devices[each.device].inWindow++
				}
			}
		}
		c.withdraw(touched)
	}
	c.schedule(touched, now)
	if answers > 0 {
		c.progressAt = now
	}
	return answers
}

func (c *publishCore) resolve(answered *item, result PublishResult) {
	switch result.Outcome {
	case OutcomeAccepted:
		c.stats.Accepted++
	case OutcomeUnconfigured:
		c.stats.Unconfigured++
	case OutcomeFiltered:
		c.stats.Filtered++
	case OutcomeUndetermined:
		c.stats.Undetermined++
	case OutcomeRejected:
		c.stats.Rejected++
	}
	c.stats.Pending--
	c.bytes -= answered.weight()
	answered.answer.resolve(result, nil)
}

// reclaim defers events that must be sent again although earlier ones of their device are deferred.
func (c *publishCore) reclaim(now time.Time) {
	if len(c.devices) > 0 {
		touched := map[deviceKey]bool{}
		c.withdraw(touched)
		c.schedule(touched, now)
	}
}

// withdraw moves events that must not be sent now out of the window, and adds their devices to touched.
func (c *publishCore) withdraw(touched map[deviceKey]bool) {
	window := slices.Clone(c.window[:c.sent])
	for _, batch := range c.window[c.sent:] {
		var staying []*item
		for _, each := range batch {
			device := c.devices[each.device]
			if device == nil || (device.resent && !device.rejected) {
				staying = append(staying, each)
				continue
			}
			device.inWindow--
			device.waiting = append(device.waiting, each)
			touched[each.device] = true
		}
		if len(staying) > 0 {
			window = append(window, staying)
		}
	}
	c.window = window
}

// schedule decides when devices without events in the window may send again.
func (c *publishCore) schedule(touched map[deviceKey]bool, now time.Time) {
	for key := range touched {
		device := c.devices[key]
		if device == nil || device.inWindow > 0 {
			continue
		}
		if len(device.waiting) == 0 {
			delete(c.devices, key)
			continue
		}
		if device.progress || !device.rejected {
			device.failures = 0
		}
		at := now
		if device.rejected {
			at = now.Add(c.retry.backoff(device.failures, c.uniform))
			device.failures++
		}
		device.resent, device.rejected, device.progress = false, false, false
		device.sort()
		heap.Push(&c.due, dueDevice{at, device.waiting[0].order, key})
	}
}

// takeDue returns the events of one request, in order for each device.
func (c *publishCore) takeDue(now time.Time) []*item {
	var batch []*item
	size := requestIDBytes
	for len(c.due) > 0 && !c.due[0].at.After(now) {
		device := c.devices[c.due[0].key]
		// Events that came since then are newer than all of these.
		device.sort()
		taken := 0
		for _, each := range device.waiting {
			fits := len(batch) < c.options.MaxBatchEvents && size+each.framed() <= c.options.MaxBatchBytes
			if len(batch) > 0 && (!fits || each.device.organization != batch[0].device.organization) {
				break
			}
			batch = append(batch, each)
			size += each.framed()
			taken++
		}
		if taken == 0 {
			break
		}
		device.waiting = slices.Clone(device.waiting[taken:])
		device.inWindow += taken
		device.resent = true
		heap.Pop(&c.due)
	}
	return batch
}
