// Command scenario is the driver of clients/scenario for Go: it reads calls from standard input, and answers on standard
// output.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"slices"
	"sort"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/siem-relay/siem-relay/clients/go/siem"
	siemv1 "github.com/siem-relay/siem-relay/clients/go/siem/v1"
)

const maxLineBytes = 1 << 20

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

type object map[string]any

// arguments of all calls that are not requests of the API.
type arguments struct {
	Call           string   `json:"call"`
	Address        string   `json:"address"`
	Token          string   `json:"token"`
	Tokens         []string `json:"tokens"`
	CA             string   `json:"ca"`
	Certificate    string   `json:"certificate"`
	Key            string   `json:"key"`
	Timeout        float64  `json:"timeout"`
	OrganizationID string   `json:"organization_id"`
	Organizations  []string `json:"organization_ids"`
	ResumeToken    string   `json:"resume_token"`
	First          int      `json:"first"`
	Last           int      `json:"last"`
	Invalid        []int    `json:"invalid"`
	EventIDs       bool     `json:"event_ids"`
}

// event returns the event with a number, as clients/scenario/README.md describes it.
func (a *arguments) event(number int) *siemv1.Event {
	sender := "192.0.2.7"
	if slices.Contains(a.Invalid, number) {
		sender = "192.0.2.256"
	}
	event := &siemv1.Event{
		OrganizationId: a.OrganizationID,
		NetworkId:      "00000000-0000-0000-0000-000000000001",
		DeviceId:       "00000000-0000-0000-0000-000000000002",
		ObservedTime:   timestamppb.New(start.Add(time.Duration(number) * time.Millisecond)),
		Payload: &siemv1.Event_IdsDetection{IdsDetection: &siemv1.IdsDetection{
			SrcIp:     sender,
			DestIp:    "198.51.100.80",
			Signature: proto.String(fmt.Sprintf("detection %d", number)),
		}},
	}
	if a.EventIDs {
		event.EventId = proto.String(fmt.Sprintf("00000000-0000-4000-8000-%012d", number))
	}
	return event
}

func shown(status *siemv1.IntegrationStatus) object {
	return object{"status": siem.StatusOf(status).String(), "reason": status.GetReason().String()}
}

func with(one, other object) object {
	for key, value := range other {
		one[key] = value
	}
	return one
}

func integration(found *siemv1.Integration) object {
	return with(shown(found.GetStatus()), object{
		"organization_id": found.GetOrganizationId(),
		"integration_id":  found.GetIntegrationId(),
		"etag":            found.GetEtag(),
		"accepted":        found.GetCounts().GetAccepted(),
		"delivered":       found.GetCounts().GetDelivered(),
		"pending":         found.GetCounts().GetPending(),
	})
}

func statusEvent(event siem.StatusEvent) object {
	switch {
	case event.Snapshot != nil:
		statuses, organizations := object{}, []string{}
		for name, current := range event.Snapshot.Statuses {
			statuses[name] = siem.StatusOf(current.GetStatus()).String()
			organizations = append(organizations, name)
		}
		sort.Strings(organizations)
		return object{
			"kind": "snapshot", "statuses": statuses, "organizations": organizations, "absent": event.Snapshot.Absent,
		}
	case event.Current != nil:
		current := event.Current
		return with(shown(current.GetStatus()), object{"kind": "current", "organization_id": current.GetOrganizationId()})
	case event.Deleted != nil:
		return object{"kind": "deleted", "organization_id": event.Deleted.GetOrganizationId()}
	default:
		return object{"kind": "absent", "organization_id": event.Absent.GetOrganizationId()}
	}
}

// failed returns a failure as the scenario expects it.
func failed(err error) object {
	var configuration *siem.ConfigurationError
	if errors.As(err, &configuration) {
		return object{"error": object{"code": "CONFIGURATION", "message": err.Error()}}
	}
	var failure *siem.Error
	if !errors.As(err, &failure) {
		return object{"error": object{"code": "", "message": err.Error()}}
	}
	violations := []string{}
	for _, each := range failure.Violations {
		violations = append(violations, each.Field)
	}
	return object{"error": object{
		"code": code.Code(failure.Code).String(), "reason": failure.ReasonName, "violations": violations,
		"message": failure.Message,
	}}
}

type sentEvent struct {
	number int
	answer *siem.Answer
}

// driver is the client of this run.
type driver struct {
	client    *siem.Client
	watch     *siem.StatusWatch
	publisher *siem.Publisher
	answers   []sentEvent
}

func (d *driver) connect(given *arguments) error {
	if d.client != nil {
		if err := d.client.Close(); err != nil {
			return err
		}
		d.client = nil
	}
	var options []siem.Option
	if given.CA != "" {
		options = append(options, siem.WithTLS(siem.TLS{
			CAFile: given.CA, CertificateFile: given.Certificate, KeyFile: given.Key,
		}))
	}
	if given.Token != "" {
		options = append(options, siem.WithToken(given.Token))
	}
	if len(given.Tokens) > 0 {
		var mu sync.Mutex
		left := given.Tokens
		options = append(options, siem.WithTokenFunc(func(context.Context) (siem.Token, error) {
			mu.Lock()
			defer mu.Unlock()
			next := left[0]
			if len(left) > 1 {
				left = left[1:]
			}
			return siem.Token{Value: next}, nil
		}))
	}
	client, err := siem.Connect(given.Address, options...)
	if err == nil {
		d.client = client
	}
	return err
}

func (d *driver) flush(ctx context.Context) (object, error) {
	if err := d.publisher.Flush(ctx); err != nil {
		return nil, err
	}
	rejected := []object{}
	for _, each := range d.answers {
		result, err := each.answer.Get(ctx)
		if err != nil {
			return nil, err
		}
		if result.Rejection != nil {
			rejected = append(rejected, object{
				"number": each.number, "reason": result.Rejection.GetReason().String(), "field": result.Rejection.GetField(),
			})
		}
	}
	sort.SliceStable(rejected, func(i, j int) bool { return rejected[i]["number"].(int) < rejected[j]["number"].(int) })
	stats := d.publisher.Stats()
	return object{
		"accepted": stats.Accepted, "filtered": stats.Filtered, "unconfigured": stats.Unconfigured, "rejected": rejected,
	}, nil
}

func (d *driver) close(ctx context.Context) (object, error) {
	ids := []string{}
	if err := d.publisher.Close(ctx); err != nil {
		var unacknowledged *siem.UnacknowledgedError
		if !errors.As(err, &unacknowledged) {
			return nil, err
		}
		for _, each := range unacknowledged.Unacknowledged {
			ids = append(ids, each.GetEventId())
		}
	}
	return object{"unacknowledged": ids}, nil
}

// ask decodes a request, makes its call, and returns a part of the answer.
func ask[Q proto.Message, R any](ctx context.Context, line []byte, request Q, rpc func(context.Context, Q) (R, error), show func(R) object) (object, error) {
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(line, request); err != nil {
		return nil, err
	}
	answer, err := rpc(ctx, request)
	if err != nil {
		return nil, err
	}
	return show(answer), nil
}

func (d *driver) call(line []byte) (object, error) {
	var given arguments
	if err := json.Unmarshal(line, &given); err != nil {
		return nil, err
	}
	ctx := context.Background()
	if given.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(given.Timeout*float64(time.Second)))
		defer cancel()
	}
	switch given.Call {
	case "connect":
		return object{}, d.connect(&given)
	case "configure":
		return ask(ctx, line, &siemv1.ConfigureRequest{}, d.client.Configure, func(answer *siemv1.ConfigureResponse) object {
			return integration(answer.GetIntegration())
		})
	case "get":
		return ask(ctx, line, &siemv1.GetRequest{}, d.client.Get, func(answer *siemv1.GetResponse) object {
			return integration(answer.GetIntegration())
		})
	case "list":
		return ask(ctx, line, &siemv1.ListRequest{}, d.client.List, func(answer *siemv1.ListResponse) object {
			names := []string{}
			for _, each := range answer.GetIntegrations() {
				names = append(names, each.GetOrganizationId())
			}
			return object{"organization_ids": names, "next_page_token": answer.GetNextPageToken()}
		})
	case "generate_external_id":
		return ask(ctx, line, &siemv1.GenerateExternalIdRequest{}, d.client.GenerateExternalId,
			func(answer *siemv1.GenerateExternalIdResponse) object {
				return object{"external_id": answer.GetExternalId()}
			})
	case "get_onboarding":
		return ask(ctx, line, &siemv1.GetOnboardingRequest{}, d.client.GetOnboarding,
			func(answer *siemv1.GetOnboardingResponse) object {
				names := []string{}
				for _, each := range answer.GetDocuments() {
					names = append(names, each.GetFileName())
				}
				return object{"file_names": names, "role_arn": answer.GetRoleArn()}
			})
	case "list_audit_entries":
		return ask(ctx, line, &siemv1.ListAuditEntriesRequest{}, d.client.ListAuditEntries,
			func(answer *siemv1.ListAuditEntriesResponse) object {
				actions, principals := []string{}, []string{}
				for _, each := range answer.GetEntries() {
					actions = append(actions, each.GetAction().String())
					principals = append(principals, each.GetPrincipal())
				}
				return object{"actions": actions, "principals": principals}
			})
	case "delete":
		return ask(ctx, line, &siemv1.DeleteRequest{}, d.client.Delete, func(answer *siemv1.DeleteResponse) object {
			return object{"accepted": answer.GetCounts().GetAccepted(), "pending": answer.GetCounts().GetPending()}
		})
	case "send_test":
		return ask(ctx, line, &siemv1.SendTestRequest{}, d.client.SendTest, func(answer *siemv1.SendTestResponse) object {
			verdict := object{"delivered": answer.GetDelivered(), "message": answer.GetMessage()}
			return with(shown(answer.GetStatus()), verdict)
		})
	case "publish":
		request := &siemv1.PublishRequest{}
		for number := given.First; number <= given.Last; number++ {
			request.Events = append(request.Events, given.event(number))
		}
		answer, err := d.client.Publish(ctx, request)
		if err != nil {
			return nil, err
		}
		rejections := []object{}
		for _, each := range answer.GetRejections() {
			rejections = append(rejections, object{
				"index": each.GetIndex(), "reason": each.GetReason().String(), "field": each.GetField(),
			})
		}
		return object{
			"accepted": answer.GetAccepted(), "unconfigured": answer.GetUnconfigured(), "rejections": rejections,
		}, nil
	case "watch_open":
		var err error
		d.watch, err = d.client.WatchStatus(context.Background(), siem.WatchOptions{
			OrganizationIDs: given.Organizations, ResumeToken: given.ResumeToken,
		})
		return object{}, err
	case "watch_next":
		event, err := d.watch.Recv()
		if err != nil {
			return nil, err
		}
		return statusEvent(event), nil
	case "watch_token":
		return object{"resume_token": d.watch.ResumeToken()}, nil
	case "watch_close":
		d.watch.Close()
		return object{}, nil
	case "publisher_open":
		var err error
		d.answers = nil
		d.publisher, err = d.client.Publisher(siem.PublisherOptions{})
		return object{}, err
	case "send":
		for number := given.First; number <= given.Last; number++ {
			answer, err := d.publisher.Send(ctx, given.event(number))
			if err != nil {
				return nil, err
			}
			d.answers = append(d.answers, sentEvent{number, answer})
		}
		return object{"sent": given.Last - given.First + 1}, nil
	case "flush":
		return d.flush(ctx)
	case "publisher_close":
		return d.close(ctx)
	default:
		return nil, fmt.Errorf("there is no call %q", given.Call)
	}
}

func main() {
	driver := &driver{}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, maxLineBytes)
	output := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		answer, err := driver.call(lines.Bytes())
		if err != nil {
			answer = failed(err)
		}
		if err := output.Encode(answer); err != nil {
			log.Fatal(err)
		}
	}
	if err := lines.Err(); err != nil {
		log.Fatal(err)
	}
}
