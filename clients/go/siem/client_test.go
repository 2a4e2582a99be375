package siem

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	siemv1 "github.com/siem-relay/siem-relay/clients/go/siem/v1"
)

func TestUnknownValues(t *testing.T) {
	server := &fake{get: func(context.Context, *siemv1.GetRequest) (*siemv1.GetResponse, error) {
		unknown := &siemv1.IntegrationStatus{Status: 99, Reason: 98}
		return &siemv1.GetResponse{Integration: &siemv1.Integration{Status: unknown}}, nil
	}}
	server.serve(t)
	answer, err := connected(t, server.address).Get(limited(t), get)
	must(t, err)
	found := answer.GetIntegration().GetStatus()
	equal(t, "status", StatusOf(found), siemv1.Status_STATUS_UNKNOWN)
	equal(t, "text of the status", found.GetStatus().String(), "99")
	equal(t, "text of the reason", found.GetReason().String(), "98")
	equal(t, "no status", StatusOf(nil), siemv1.Status_STATUS_UNKNOWN)
	equal(t, "a known status", StatusOf(&siemv1.IntegrationStatus{Status: siemv1.Status_STATUS_PAUSED}), siemv1.Status_STATUS_PAUSED)
}

func TestTypedErrors(t *testing.T) {
	server := &fake{get: func(context.Context, *siemv1.GetRequest) (*siemv1.GetResponse, error) {
		return nil, planned(codes.InvalidArgument, "INVALID_FIELD", 0, "a", "b")
	}}
	server.serve(t)
	_, err := connected(t, server.address).Get(limited(t), get)
	var failure *Error
	if !errors.As(fmt.Errorf("wrapped: %w", err), &failure) {
		t.Fatal(err)
	}
	equal(t, "code", failure.Code, codes.InvalidArgument)
	equal(t, "reason", failure.Reason, siemv1.ErrorReason_ERROR_REASON_INVALID_FIELD)
	equal(t, "violations", fmt.Sprint(failure.Violations), "[{a planned} {b planned}]")
	equal(t, "attempts", failure.Attempts, 1)
	equal(t, "delay", failure.RetryDelay, nil)
	equal(t, "text", err.Error(), "siem: INVALID_ARGUMENT/INVALID_FIELD: planned")
	equal(t, "code by gRPC", status.Code(err), codes.InvalidArgument)
	equal(t, "details by gRPC", len(status.Convert(err).Details()), 2)
}

func TestNothingListens(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	address := listener.Addr().String()
	must(t, listener.Close())
	client := connected(t, address, WithTimeout(time.Second))
	began := time.Now()
	// Not even SendTest was sent, so that it may be tried again.
	_, err = client.SendTest(context.Background(), &siemv1.SendTestRequest{})
	var failure *Error
	if !errors.As(err, &failure) || failure.Code != codes.Unavailable || failure.Attempts < 3 {
		t.Fatal(err, failure.Attempts)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Fatal(took)
	}
}

func TestACallThatWasNeverSentIsSentLater(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	address := listener.Addr().String()
	must(t, listener.Close())
	var calls atomic.Int32
	failed := make(chan struct{}, 1)
	server := &fake{test: func(context.Context, *siemv1.SendTestRequest) (*siemv1.SendTestResponse, error) {
		calls.Add(1)
		return &siemv1.SendTestResponse{Delivered: true}, nil
	}}
	client := connected(t, address, WithLogger(loggerOf(func() {
		select {
		case failed <- struct{}{}:
		default:
		}
	})))
	answered := make(chan error, 1)
	go func() {
		answer, err := client.SendTest(limited(t), &siemv1.SendTestRequest{})
		if err == nil && !answer.GetDelivered() {
			err = errors.New("not delivered")
		}
		answered <- err
	}()
	// The server starts only after the first attempt.
	<-failed
	again, err := net.Listen("tcp", address)
	must(t, err)
	server.serveOn(t, again)
	must(t, <-answered)
	equal(t, "calls", calls.Load(), 1)
}

func TestACallThatMayHaveTakenEffectIsNotSentTwice(t *testing.T) {
	var calls atomic.Int32
	server := &fake{test: func(context.Context, *siemv1.SendTestRequest) (*siemv1.SendTestResponse, error) {
		calls.Add(1)
		return nil, planned(codes.Unavailable, "", 0)
	}}
	server.serve(t)
	_, err := connected(t, server.address).SendTest(limited(t), &siemv1.SendTestRequest{})
	equal(t, "code", status.Code(err), codes.Unavailable)
	equal(t, "calls", calls.Load(), 1)
}

func TestACallThatTheCallerEnds(t *testing.T) {
	entered := make(chan struct{})
	server := &fake{get: func(ctx context.Context, _ *siemv1.GetRequest) (*siemv1.GetResponse, error) {
		close(entered)
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	server.serve(t)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-entered
		cancel()
	}()
	_, err := connected(t, server.address).Get(ctx, get)
	if !errors.Is(err, context.Canceled) || status.Code(err) != codes.Canceled {
		t.Fatal(err)
	}
}

func TestACallThatTheCallerEndsBetweenAttempts(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	server := &fake{get: func(context.Context, *siemv1.GetRequest) (*siemv1.GetResponse, error) {
		return nil, planned(codes.Unavailable, "", 20*time.Second)
	}}
	server.serve(t)
	_, err := connected(t, server.address, WithLogger(loggerOf(cancel))).Get(ctx, get)
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "the attempt before failed: siem: UNAVAILABLE") {
		t.Fatal(err)
	}
}

func TestCloseEndsWaitingCalls(t *testing.T) {
	server := &fake{get: func(context.Context, *siemv1.GetRequest) (*siemv1.GetResponse, error) {
		return nil, planned(codes.Unavailable, "", 20*time.Second)
	}}
	server.serve(t)
	waiting := make(chan struct{}, 1)
	client := connected(t, server.address, WithLogger(loggerOf(func() { waiting <- struct{}{} })))
	ended := make(chan error, 1)
	go func() {
		_, err := client.Get(limited(t), get)
		ended <- err
	}()
	<-waiting
	must(t, client.Close())
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	if _, err := client.Get(limited(t), get); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}

func TestACallWaitsForAFreeStreamUntilItsDeadlineAndSaysSo(t *testing.T) {
	server := &fake{
		get: func(context.Context, *siemv1.GetRequest) (*siemv1.GetResponse, error) { return got, nil },
		status: func(_ *siemv1.StreamStatusRequest, stream siemv1.SiemIntegrationService_StreamStatusServer) error {
			if err := stream.Send(synced("1")); err != nil {
				return err
			}
			<-stream.Context().Done()
			return nil
		},
	}
	server.serve(t, grpc.MaxConcurrentStreams(1))
	client := connected(t, server.address)
	watch, err := client.WatchStatus(limited(t), WatchOptions{})
	must(t, err)
	_, err = watch.Recv()
	must(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_, err = client.Get(ctx, get)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "as many open calls, watches and publishers") {
		t.Fatal(err)
	}
	watch.Close()
	_, err = watch.Recv()
	equal(t, "after Close", errors.Is(err, ErrClosed), true)
	_, err = client.Get(limited(t), get)
	must(t, err)
}

func TestBadTextIsRefusedBeforeItIsSent(t *testing.T) {
	server := &fake{publish: accepting(nil)}
	server.serve(t)
	client := connected(t, server.address)
	_, err := client.Get(limited(t), &siemv1.GetRequest{OrganizationId: "\xff"})
	var refused *ConfigurationError
	equal(t, "a call", errors.As(err, &refused), true)
	publisher, err := client.Publisher(PublisherOptions{})
	must(t, err)
	_, err = publisher.Send(limited(t), &siemv1.Event{OrganizationId: "\xff"})
	equal(t, "an event", errors.As(err, &refused), true)
	must(t, publisher.Close(limited(t)))
}

func TestCompressedRequests(t *testing.T) {
	server := &fake{get: func(ctx context.Context, _ *siemv1.GetRequest) (*siemv1.GetResponse, error) {
		values, _ := metadata.FromIncomingContext(ctx)
		if len(values.Get("grpc-accept-encoding")) == 0 {
			return nil, planned(codes.FailedPrecondition, "", 0)
		}
		return got, nil
	}}
	server.serve(t)
	_, err := connected(t, server.address, WithGzip()).Get(limited(t), get)
	must(t, err)
}

// authority issues certificates.
type authority struct {
	t           *testing.T
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
}

func newAuthority(t *testing.T) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	certificate, err := x509.ParseCertificate(der)
	must(t, err)
	return &authority{t, certificate, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (a *authority) issue(name string, left time.Duration) (certificate, key []byte) {
	made, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(a.t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(left),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, &made.PublicKey, a.key)
	must(a.t, err)
	encoded, err := x509.MarshalPKCS8PrivateKey(made)
	must(a.t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded})
}

func TestReplacedCertificatesAreUsedForTheNextConnection(t *testing.T) {
	issuer := newAuthority(t)
	certificate, key := issuer.issue("server", time.Hour)
	pair, err := tls.X509KeyPair(certificate, key)
	must(t, err)
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(issuer.pem)
	var caller string
	server := &fake{get: func(ctx context.Context, _ *siemv1.GetRequest) (*siemv1.GetResponse, error) {
		from, _ := peer.FromContext(ctx)
		caller = from.AuthInfo.(credentials.TLSInfo).State.PeerCertificates[0].Subject.CommonName
		return got, nil
	}}
	server.serve(t, grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: trusted, ClientAuth: tls.RequireAndVerifyClientCert,
	})))
	directory := t.TempDir()
	path := func(name string) string { return filepath.Join(directory, name) }
	write := func(certificate, key []byte) {
		must(t, os.WriteFile(path("certificate"), certificate, 0o600))
		must(t, os.WriteFile(path("key"), key, 0o600))
	}
	write(issuer.issue("first", time.Hour))
	must(t, os.WriteFile(path("ca"), issuer.pem, 0o600))
	set := TLS{CAFile: path("ca"), CertificateFile: path("certificate"), KeyFile: path("key")}
	loaded, err := set.load()
	must(t, err)
	shared := &tlsCredentials{options: set, last: loaded}
	call := func(wanted string) {
		t.Helper()
		connection, err := grpc.NewClient("dns:///"+server.address, grpc.WithTransportCredentials(shared))
		must(t, err)
		defer connection.Close()
		_, err = siemv1.NewSiemIntegrationServiceClient(connection).Get(limited(t), get)
		must(t, err)
		equal(t, "caller", caller, wanted)
	}
	call("first")
	write(issuer.issue("second", time.Hour))
	call("second")
	// One that has expired, a certificate without its key, and a file that is being written: the last good one remains.
	write(issuer.issue("expired", -time.Hour))
	call("second")
	half, _ := issuer.issue("half", time.Hour)
	must(t, os.WriteFile(path("certificate"), half, 0o600))
	call("second")
	must(t, os.WriteFile(path("ca"), issuer.pem[:40], 0o600))
	call("second")
	// And through Connect, with the content in memory.
	third, thirdKey := issuer.issue("third", time.Hour)
	client := connected(t, "https://"+server.address, WithTLS(TLS{CA: issuer.pem, Certificate: third, Key: thirdKey}))
	_, err = client.Get(limited(t), get)
	must(t, err)
	equal(t, "caller", caller, "third")
	// Of an authority that is not trusted.
	other := connected(t, "https://"+server.address, WithTimeout(500*time.Millisecond), WithTLS(TLS{CA: newAuthority(t).pem}))
	if _, err = other.Get(context.Background(), get); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "certificate") {
		t.Fatal(err)
	}
}

func synced(token string) *siemv1.StreamStatusResponse {
	return &siemv1.StreamStatusResponse{ResumeToken: token, Event: &siemv1.StreamStatusResponse_Synced{}}
}

func current(token, organization string) *siemv1.StreamStatusResponse {
	return &siemv1.StreamStatusResponse{ResumeToken: token, Event: &siemv1.StreamStatusResponse_Current{
		Current: &siemv1.StatusCurrent{OrganizationId: organization},
	}}
}

func TestADeadConnectionIsNoticedWithin45Seconds(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes 40 s")
	}
	t.Parallel()
	streams := make(chan string, 10)
	server := &fake{status: func(request *siemv1.StreamStatusRequest, stream siemv1.SiemIntegrationService_StreamStatusServer) error {
		streams <- request.GetResumeToken()
		if err := stream.Send(synced("1")); err != nil {
			return err
		}
		<-stream.Context().Done()
		return nil
	}}
	server.serve(t)
	between := newProxy(t, server.address)
	broken := make(chan time.Time, 10)
	client := connected(t, between.listener.Addr().String(), WithLogger(loggerOf(func() { broken <- time.Now() })))
	watch, err := client.WatchStatus(limited(t), WatchOptions{})
	must(t, err)
	_, err = watch.Recv()
	must(t, err)
	close(between.blocked)
	began := time.Now()
	ended := make(chan error, 1)
	go func() {
		_, err := watch.Recv()
		ended <- err
	}()
	if took := (<-broken).Sub(began); took > 45*time.Second {
		t.Fatal(took)
	}
	watch.Close()
	equal(t, "after Close", errors.Is(<-ended, ErrClosed), true)
}

func TestASilentStreamIsOpenedAgain(t *testing.T) {
	var streams atomic.Int32
	server := &fake{status: func(request *siemv1.StreamStatusRequest, stream siemv1.SiemIntegrationService_StreamStatusServer) error {
		if streams.Add(1) > 1 {
			if request.GetResumeToken() != "1" {
				return planned(codes.InvalidArgument, "", 0)
			}
			return stream.Send(current("2", "acme"))
		}
		if err := stream.Send(synced("1")); err != nil {
			return err
		}
		<-stream.Context().Done()
		return nil
	}}
	server.serve(t)
	client := connected(t, server.address)
	watch, err := client.WatchStatus(limited(t), WatchOptions{SilenceLimit: 50 * time.Millisecond})
	must(t, err)
	defer watch.Close()
	event, err := watch.Recv()
	must(t, err)
	equal(t, "first event", event.Snapshot != nil, true)
	event, err = watch.Recv()
	must(t, err)
	equal(t, "second event", event.Current.GetOrganizationId(), "acme")
	equal(t, "token", watch.ResumeToken(), "2")
}

func TestAWatchEndsWithAnErrorThatWouldComeAgain(t *testing.T) {
	server := &fake{status: func(*siemv1.StreamStatusRequest, siemv1.SiemIntegrationService_StreamStatusServer) error {
		return planned(codes.PermissionDenied, "PERMISSION_DENIED", 0)
	}}
	server.serve(t)
	watch, err := connected(t, server.address).WatchStatus(limited(t), WatchOptions{})
	must(t, err)
	for range make([]int, 2) {
		_, err = watch.Recv()
		var failure *Error
		if !errors.As(err, &failure) || failure.Reason != siemv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED {
			t.Fatal(err)
		}
	}
}

func TestAWatchEndsWithItsContextItsClientAndClose(t *testing.T) {
	opened := make(chan struct{}, 10)
	server := &fake{status: func(_ *siemv1.StreamStatusRequest, stream siemv1.SiemIntegrationService_StreamStatusServer) error {
		opened <- struct{}{}
		<-stream.Context().Done()
		return nil
	}}
	server.serve(t)
	for _, each := range []struct {
		end    func(*Client, *StatusWatch, context.CancelFunc)
		wanted error
	}{
		{func(_ *Client, _ *StatusWatch, cancel context.CancelFunc) { cancel() }, context.Canceled},
		{func(client *Client, _ *StatusWatch, _ context.CancelFunc) { must(t, client.Close()) }, ErrClosed},
		{func(_ *Client, watch *StatusWatch, _ context.CancelFunc) { watch.Close() }, ErrClosed},
	} {
		client := connected(t, server.address)
		ctx, cancel := context.WithCancel(context.Background())
		watch, err := client.WatchStatus(ctx, WatchOptions{})
		must(t, err)
		go func(end func(*Client, *StatusWatch, context.CancelFunc)) {
			<-opened
			end(client, watch, cancel)
		}(each.end)
		_, err = watch.Recv()
		equal(t, "end of the watch", errors.Is(err, each.wanted), true)
		watch.Close()
		cancel()
	}
}

func TestAWatchTakesANewTokenWhenItsOwnExpires(t *testing.T) {
	var number atomic.Int32
	server := &fake{status: func(request *siemv1.StreamStatusRequest, stream siemv1.SiemIntegrationService_StreamStatusServer) error {
		values, _ := metadata.FromIncomingContext(stream.Context())
		switch values.Get("authorization")[0] {
		case "Bearer 1":
			if err := stream.Send(synced("a")); err != nil {
				return err
			}
			return planned(codes.Unauthenticated, "UNAUTHENTICATED", 0)
		case "Bearer 2":
			if err := stream.Send(current("b", request.GetResumeToken())); err != nil {
				return err
			}
		}
		return planned(codes.Unauthenticated, "UNAUTHENTICATED", 0)
	}}
	server.serve(t)
	client := connected(t, server.address, WithTokenFunc(func(context.Context) (Token, error) {
		return Token{Value: fmt.Sprint(number.Add(1))}, nil
	}))
	watch, err := client.WatchStatus(limited(t), WatchOptions{})
	must(t, err)
	_, err = watch.Recv()
	must(t, err)
	event, err := watch.Recv()
	must(t, err)
	equal(t, "continued after", event.Current.GetOrganizationId(), "a")
	// A token that is refused at once is not fetched a second time.
	_, err = watch.Recv()
	equal(t, "end", status.Code(err), codes.Unauthenticated)
	equal(t, "tokens", number.Load(), 3)
}

func TestAFullPublisherWaits(t *testing.T) {
	release := make(chan struct{})
	server := &fake{publish: func(stream siemv1.EventService_PublishStreamServer) error {
		<-release
		return accepting(nil)(stream)
	}}
	server.serve(t)
	publisher, err := connected(t, server.address).Publisher(PublisherOptions{MaxBytesInFlight: 10_000})
	must(t, err)
	sent := 0
	for ; ; sent++ {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		_, err := publisher.Send(ctx, event(sent, "device", "acme", 1_000))
		cancel()
		if err != nil {
			equal(t, "error", errors.Is(err, context.DeadlineExceeded), true)
			break
		}
	}
	if sent == 0 || sent > 5 {
		t.Fatalf("%d events", sent)
	}
	waiting := make(chan error, 1)
	go func() {
		_, err := publisher.Send(limited(t), event(sent, "device", "acme", 1_000))
		waiting <- err
	}()
	close(release)
	must(t, <-waiting)
	must(t, publisher.Close(limited(t)))
	equal(t, "accepted", publisher.Stats().Accepted, uint64(sent+1))
}

func TestARefusedPublisherEndsAndNamesItsEvents(t *testing.T) {
	server := &fake{publish: func(siemv1.EventService_PublishStreamServer) error {
		return planned(codes.PermissionDenied, "PERMISSION_DENIED", 0)
	}}
	server.serve(t)
	publisher, err := connected(t, server.address).Publisher(PublisherOptions{})
	must(t, err)
	answer, err := publisher.Send(limited(t), event(1, "device", "acme", 0))
	must(t, err)
	_, err = answer.Get(limited(t))
	equal(t, "answer", status.Code(err), codes.PermissionDenied)
	_, err = publisher.Send(limited(t), event(2, "device", "acme", 0))
	equal(t, "later event", errors.Is(err, ErrClosed), true)
	for _, err := range []error{publisher.Flush(limited(t)), publisher.Close(limited(t))} {
		var unacknowledged *UnacknowledgedError
		if !errors.As(err, &unacknowledged) || len(unacknowledged.Unacknowledged) != 1 ||
			!strings.Contains(err.Error(), "PERMISSION_DENIED") || !strings.Contains(err.Error(), "acme/device/device-1") {
			t.Fatal(err)
		}
	}
}

func TestCloseWhileTheServerIsDownNamesTheEvents(t *testing.T) {
	publisher, err := connected(t, "127.0.0.1:1").Publisher(PublisherOptions{})
	must(t, err)
	var answers []*Answer
	for number := 0; number < 7; number++ {
		answer, err := publisher.Send(limited(t), event(number, "device", "acme", 0))
		must(t, err)
		answers = append(answers, answer)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	err = publisher.Close(ctx)
	var unacknowledged *UnacknowledgedError
	if !errors.As(err, &unacknowledged) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	for number, each := range unacknowledged.Unacknowledged {
		equal(t, "id", each.GetEventId(), fmt.Sprintf("device-%d", number))
	}
	equal(t, "events", len(unacknowledged.Unacknowledged), 7)
	equal(t, "the rest of the text", strings.Contains(err.Error(), "and 2 more"), true)
	for _, each := range answers {
		if _, err := each.Get(limited(t)); !errors.As(err, &unacknowledged) {
			t.Fatal(err)
		}
	}
	must(t, publisher.Close(limited(t)))
}

func TestTheClientEndsItsPublishers(t *testing.T) {
	client := connected(t, "127.0.0.1:1")
	publisher, err := client.Publisher(PublisherOptions{})
	must(t, err)
	answer, err := publisher.Send(limited(t), event(1, "device", "acme", 0))
	must(t, err)
	must(t, client.Close())
	_, err = answer.Get(limited(t))
	equal(t, "answer", errors.Is(err, ErrClosed), true)
	var unacknowledged *UnacknowledgedError
	if err := publisher.Close(limited(t)); !errors.As(err, &unacknowledged) || !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}

func TestAnAnswerThatDoesNotComeOpensANewStream(t *testing.T) {
	var streams atomic.Int32
	server := &fake{publish: func(stream siemv1.EventService_PublishStreamServer) error {
		if streams.Add(1) > 1 {
			return accepting(nil)(stream)
		}
		<-stream.Context().Done()
		return nil
	}}
	server.serve(t)
	publisher, err := connected(t, server.address).Publisher(PublisherOptions{AnswerTimeout: time.Second})
	must(t, err)
	// More than the stream takes without being read, so that the sender is blocked.
	for number := 0; number < 5; number++ {
		_, err := publisher.Send(limited(t), event(number, "device", "acme", 100_000))
		must(t, err)
	}
	must(t, publisher.Close(limited(t)))
	stats := publisher.Stats()
	equal(t, "accepted", stats.Accepted, 5)
	equal(t, "reconnects", stats.Reconnects > 0, true)
}

func TestAPublisherTakesANewToken(t *testing.T) {
	var number atomic.Int32
	server := &fake{publish: func(stream siemv1.EventService_PublishStreamServer) error {
		values, _ := metadata.FromIncomingContext(stream.Context())
		if values.Get("authorization")[0] == "Bearer 1" {
			if _, err := stream.Recv(); err != nil {
				return err
			}
			return planned(codes.Unauthenticated, "UNAUTHENTICATED", 0)
		}
		return accepting(nil)(stream)
	}}
	server.serve(t)
	client := connected(t, server.address, WithTokenFunc(func(context.Context) (Token, error) {
		return Token{Value: fmt.Sprint(number.Add(1))}, nil
	}))
	publisher, err := client.Publisher(PublisherOptions{})
	must(t, err)
	_, err = publisher.Send(limited(t), event(1, "device", "acme", 0))
	must(t, err)
	must(t, publisher.Close(limited(t)))
	equal(t, "tokens", number.Load(), 2)
	equal(t, "accepted", publisher.Stats().Accepted, 1)
}

func TestAnEventDoesNotWaitForTheAnswersToOthers(t *testing.T) {
	release := make(chan struct{})
	seen := make(chan int, 10)
	server := &fake{publish: func(stream siemv1.EventService_PublishStreamServer) error {
		answer := accepting(func(request *siemv1.PublishStreamRequest) *siemv1.PublishResponse { return nil })
		return answer(&delayed{EventService_PublishStreamServer: stream, seen: seen, release: release})
	}}
	server.serve(t)
	publisher, err := connected(t, server.address).Publisher(PublisherOptions{Linger: -1})
	must(t, err)
	for number := 0; number < 3; number++ {
		_, err := publisher.Send(limited(t), event(number, "device", "acme", 0))
		must(t, err)
		equal(t, "events of a request", <-seen, 1)
	}
	close(release)
	must(t, publisher.Close(limited(t)))
}

// delayed reads all requests at once, and hands them to its reader after release.
type delayed struct {
	siemv1.EventService_PublishStreamServer
	seen    chan int
	release chan struct{}
	once    sync.Once
	queue   chan *siemv1.PublishStreamRequest
}

func (d *delayed) Recv() (*siemv1.PublishStreamRequest, error) {
	d.once.Do(func() {
		d.queue = make(chan *siemv1.PublishStreamRequest, 10)
		go func() {
			defer close(d.queue)
			for {
				request, err := d.EventService_PublishStreamServer.Recv()
				if err != nil {
					return
				}
				d.seen <- len(request.GetEvents())
				d.queue <- request
			}
		}()
	})
	<-d.release
	if request, ok := <-d.queue; ok {
		return request, nil
	}
	return nil, io.EOF
}

func TestEventsAreCopied(t *testing.T) {
	var ids []string
	server := &fake{publish: accepting(func(request *siemv1.PublishStreamRequest) *siemv1.PublishResponse {
		for _, each := range request.GetEvents() {
			ids = append(ids, each.GetEventId())
		}
		return nil
	})}
	server.serve(t)
	publisher, err := connected(t, server.address).Publisher(PublisherOptions{})
	must(t, err)
	same := event(0, "device", "acme", 0)
	for number := 0; number < 3; number++ {
		*same.EventId = fmt.Sprint(number)
		_, err := publisher.Send(limited(t), same)
		must(t, err)
	}
	must(t, publisher.Close(limited(t)))
	equal(t, "ids", strings.Join(ids, " "), "0 1 2")
}

func TestManyGoroutinesPublish(t *testing.T) {
	var lost atomic.Int32
	server := &fake{publish: accepting(func(request *siemv1.PublishStreamRequest) *siemv1.PublishResponse { return nil })}
	failing := server.publish
	server.publish = func(stream siemv1.EventService_PublishStreamServer) error {
		if lost.Add(1) < 4 {
			// Taken without an answer.
			_, _ = stream.Recv()
			return planned(codes.Unavailable, "SHUTTING_DOWN", 0)
		}
		return failing(stream)
	}
	server.serve(t)
	publisher, err := connected(t, server.address).Publisher(PublisherOptions{
		MaxBytesInFlight: 100_000, MinRetryWait: time.Millisecond,
	})
	must(t, err)
	var all sync.WaitGroup
	for worker := 0; worker < 8; worker++ {
		all.Add(1)
		go func(device string) {
			defer all.Done()
			for number := 0; number < 500; number++ {
				answer, err := publisher.Send(limited(t), event(number, device, "acme", 0))
				if err != nil {
					t.Error(err)
					return
				}
				if number%100 == 99 {
					if result, err := answer.Get(limited(t)); err != nil || result.Outcome != OutcomeAccepted {
						t.Error(result, err)
					}
				}
			}
		}(fmt.Sprintf("device%d", worker))
	}
	all.Wait()
	must(t, publisher.Flush(limited(t)))
	equal(t, "accepted", publisher.Stats().Accepted, 4_000)
	equal(t, "reconnects", publisher.Stats().Reconnects, 3)
	must(t, publisher.Close(limited(t)))
}

func TestAnUnusedPublisherOpensNoStream(t *testing.T) {
	var streams atomic.Int32
	server := &fake{publish: func(stream siemv1.EventService_PublishStreamServer) error {
		streams.Add(1)
		return accepting(nil)(stream)
	}}
	server.serve(t)
	publisher, err := connected(t, server.address).Publisher(PublisherOptions{})
	must(t, err)
	must(t, publisher.Flush(limited(t)))
	must(t, publisher.Close(limited(t)))
	equal(t, "streams", streams.Load(), 0)
}
