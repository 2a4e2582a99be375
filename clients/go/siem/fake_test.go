package siem

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	siemv1 "github.com/siem-relay/siem-relay/clients/go/siem/v1"
)

// No goroutine of a client, a watch or a publisher outlives it.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a server that answers by functions; without one it is UNIMPLEMENTED.
type fake struct {
	siemv1.UnimplementedSiemIntegrationServiceServer
	siemv1.UnimplementedEventServiceServer

	address string
	get     func(context.Context, *siemv1.GetRequest) (*siemv1.GetResponse, error)
	test    func(context.Context, *siemv1.SendTestRequest) (*siemv1.SendTestResponse, error)
	status  func(*siemv1.StreamStatusRequest, siemv1.SiemIntegrationService_StreamStatusServer) error
	publish func(siemv1.EventService_PublishStreamServer) error
}

func (f *fake) Get(ctx context.Context, request *siemv1.GetRequest) (*siemv1.GetResponse, error) {
	return f.get(ctx, request)
}

func (f *fake) SendTest(ctx context.Context, request *siemv1.SendTestRequest) (*siemv1.SendTestResponse, error) {
	return f.test(ctx, request)
}

func (f *fake) StreamStatus(request *siemv1.StreamStatusRequest, stream siemv1.SiemIntegrationService_StreamStatusServer) error {
	return f.status(request, stream)
}

func (f *fake) PublishStream(stream siemv1.EventService_PublishStreamServer) error {
	return f.publish(stream)
}

// serve starts a server on a free port of loopback until the end of the test.
func (f *fake) serve(t *testing.T, options ...grpc.ServerOption) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	f.serveOn(t, listener, options...)
}

func (f *fake) serveOn(t *testing.T, listener net.Listener, options ...grpc.ServerOption) {
	server := grpc.NewServer(options...)
	siemv1.RegisterSiemIntegrationServiceServer(server, f)
	siemv1.RegisterEventServiceServer(server, f)
	f.address = listener.Addr().String()
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		must(t, <-ended)
	})
}

// accepting answers each request of a PublishStream; all events are accepted unless answer says otherwise.
func accepting(answer func(*siemv1.PublishStreamRequest) *siemv1.PublishResponse) func(siemv1.EventService_PublishStreamServer) error {
	return func(stream siemv1.EventService_PublishStreamServer) error {
		for {
			request, err := stream.Recv()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			var result *siemv1.PublishResponse
			if answer != nil {
				result = answer(request)
			}
			if result == nil {
				result = &siemv1.PublishResponse{Accepted: uint32(len(request.GetEvents()))}
			}
			if err := stream.Send(&siemv1.PublishStreamResponse{
				RequestId: request.GetRequestId(), Outcome: &siemv1.PublishStreamResponse_Result{Result: result},
			}); err != nil {
				return err
			}
		}
	}
}

// planned returns an error of the server.
func planned(code codes.Code, reason string, delay time.Duration, fields ...string) error {
	var details []protoadapt.MessageV1
	if reason != "" {
		details = append(details, &errdetails.ErrorInfo{Domain: "siem.v1", Reason: reason})
	}
	if delay > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(delay)})
	}
	if len(fields) > 0 {
		bad := &errdetails.BadRequest{}
		for _, field := range fields {
			bad.FieldViolations = append(bad.FieldViolations,
				&errdetails.BadRequest_FieldViolation{Field: field, Description: "planned"})
		}
		details = append(details, bad)
	}
	result, err := status.New(code, "planned").WithDetails(details...)
	if err != nil {
		panic(err)
	}
	return result.Err()
}

var (
	fast = WithRetry(RetryOptions{MinWait: 10 * time.Millisecond, MaxWait: 100 * time.Millisecond})
	get  = &siemv1.GetRequest{OrganizationId: "acme"}
	got  = &siemv1.GetResponse{Integration: &siemv1.Integration{OrganizationId: "acme"}}
)

// connected returns a client until the end of the test.
func connected(t *testing.T, address string, options ...Option) *Client {
	t.Helper()
	client, err := Connect(address, append([]Option{fast}, options...)...)
	must(t, err)
	t.Cleanup(func() { must(t, client.Close()) })
	return client
}

// limited returns a context that ends long after everything should have happened.
func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal[T comparable](t *testing.T, what string, seen, wanted T) {
	t.Helper()
	if seen != wanted {
		t.Fatalf("%s: %v instead of %v", what, seen, wanted)
	}
}

// event returns an event with a recognisable id.
func event(number int, device, organization string, size int) *siemv1.Event {
	return &siemv1.Event{
		OrganizationId: organization,
		DeviceId:       device,
		EventId:        proto.String(fmt.Sprintf("%s-%d", device, number)),
		Payload: &siemv1.Event_IdsDetection{IdsDetection: &siemv1.IdsDetection{
			Signature: proto.String(fmt.Sprintf("detection %d", number)), ContextJson: string(make([]byte, size)),
		}},
	}
}

// proxy forwards to a server until it is blocked: then it is silent, and does not answer new connections.
type proxy struct {
	listener net.Listener
	blocked  chan struct{}
	mu       sync.Mutex
	open     []net.Conn
	ended    sync.WaitGroup
}

func newProxy(t *testing.T, server string) *proxy {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	p := &proxy{listener: listener, blocked: make(chan struct{})}
	p.ended.Add(1)
	go p.serve(server)
	t.Cleanup(func() {
		listener.Close()
		p.mu.Lock()
		for _, each := range p.open {
			each.Close()
		}
		p.mu.Unlock()
		p.ended.Wait()
	})
	return p
}

func (p *proxy) serve(server string) {
	defer p.ended.Done()
	for {
		near, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		p.open = append(p.open, near)
		p.mu.Unlock()
		if p.isBlocked() {
			continue
		}
		far, err := net.Dial("tcp", server)
		if err != nil {
			near.Close()
			continue
		}
		p.mu.Lock()
		p.open = append(p.open, far)
		p.mu.Unlock()
		p.ended.Add(2)
		go p.copy(far, near)
		go p.copy(near, far)
	}
}

func (p *proxy) isBlocked() bool {
	select {
	case <-p.blocked:
		return true
	default:
		return false
	}
}

func (p *proxy) copy(to, from net.Conn) {
	defer p.ended.Done()
	buffer := make([]byte, 64<<10)
	for {
		count, err := from.Read(buffer)
		if p.isBlocked() {
			if err != nil {
				return
			}
			continue
		}
		if err != nil {
			to.Close()
			return
		}
		if _, err := to.Write(buffer[:count]); err != nil {
			return
		}
	}
}
