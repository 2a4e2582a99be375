// Package siem is the client of the API siem.v1 of siem-relay: typed errors, retries within a deadline, a status watch
// that survives restarts, and a publisher that loses no event. The messages and enums are in the package siemv1.
//
//	client, err := siem.Connect("http://127.0.0.1:50051")
//	if err != nil {
//		return err
//	}
//	defer client.Close()
//	answer, err := client.Get(ctx, &siemv1.GetRequest{OrganizationId: "acme"})
//
// Values of enums may be newer than this package. Their String method returns the number of an unknown one, and StatusOf
// returns STATUS_UNKNOWN for an unknown status.
package siem

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	siemv1 "github.com/siem-relay/siem-relay/clients/go/siem/v1"
)

// DefaultAddress is that of a server on this machine with its default settings.
const DefaultAddress = "http://127.0.0.1:50051"

const defaultTimeout = 30 * time.Second

// Start of gRPC's message for a request that was not sent, such as one whose text is not UTF-8.
const encodingProblem = "grpc: error while marshaling"

// StatusOf returns the status of an integration; STATUS_UNKNOWN for one that this version does not know.
func StatusOf(found *siemv1.IntegrationStatus) siemv1.Status {
	if _, known := siemv1.Status_name[int32(found.GetStatus())]; !known || found.GetStatus() == siemv1.Status_STATUS_UNSPECIFIED {
		return siemv1.Status_STATUS_UNKNOWN
	}
	return found.GetStatus()
}

type options struct {
	tls       *TLS
	token     *string
	tokenFunc TokenFunc
	tokenFile string
	timeout   time.Duration
	retry     RetryOptions
	gzip      bool
	log       *slog.Logger
}

// Option is an option of Connect.
type Option func(*options)

// WithTLS sets the authorities to trust and the certificate of the client. An address with https and without this option
// trusts the authorities of the system.
func WithTLS(tls TLS) Option { return func(o *options) { o.tls = &tls } }

// WithToken sets a bearer token that does not change.
func WithToken(token string) Option { return func(o *options) { o.token = &token } }

// WithTokenFile sets a file with a bearer token, such as a projected service account token of Kubernetes. It is read
// again every minute, ahead of the token's expiry, and when the server refuses the token.
func WithTokenFile(path string) Option { return func(o *options) { o.tokenFile = path } }

// WithTokenFunc sets a function that returns a bearer token. It is called once for all calls, ahead of the expiry and
// after the server has refused a token.
func WithTokenFunc(function TokenFunc) Option { return func(o *options) { o.tokenFunc = function } }

// WithTimeout sets the deadline of calls whose context has none, over all attempts: 30 s without this option.
func WithTimeout(timeout time.Duration) Option { return func(o *options) { o.timeout = timeout } }

// WithRetry sets the waits between attempts.
func WithRetry(retry RetryOptions) Option { return func(o *options) { o.retry = retry } }

// WithGzip compresses the requests.
func WithGzip() Option { return func(o *options) { o.gzip = true } }

// WithLogger logs failed attempts and broken streams. Without this option nothing is logged.
func WithLogger(log *slog.Logger) Option { return func(o *options) { o.log = log } }

// Client is a client of one server, or of several behind one address. Connect makes it. It may be used by many
// goroutines. The connection is opened at the first use, and again after each loss.
//
// Each call has one deadline over all its attempts: that of its context, or else 30 s. A failed call returns an *Error.
type Client struct {
	connection   *grpc.ClientConn
	integrations siemv1.SiemIntegrationServiceClient
	events       siemv1.EventServiceClient
	tokens       *tokens
	timeout      time.Duration
	retry        RetryOptions
	log          *slog.Logger
	// Ends with the client.
	ctx    context.Context
	cancel context.CancelFunc
}

// Connect returns a client of the server at an address: "http://HOST:PORT", "https://HOST:PORT", or "HOST:PORT" (TLS
// with WithTLS, else plaintext). It connects at its first use. Its errors are of the type *ConfigurationError.
func Connect(address string, opts ...Option) (*Client, error) {
	set := options{timeout: defaultTimeout, log: slog.New(discard{})}
	for _, option := range opts {
		option(&set)
	}
	if set.timeout <= 0 {
		return nil, configurationError("timeout: %v is not positive", set.timeout)
	}
	if set.log == nil {
		return nil, configurationError("logger: it is nil; leave the option out")
	}
	retry, err := set.retry.withDefaults()
	if err != nil {
		return nil, err
	}
	credentials, err := set.tokens()
	if err != nil {
		return nil, err
	}
	where, err := parseAddress(address, set.tls != nil, credentials != nil)
	if err != nil {
		return nil, err
	}
	connection, err := where.dial(set.tls, set.gzip)
	if err != nil {
		return nil, err
	}
	client := &Client{
		connection:   connection,
		integrations: siemv1.NewSiemIntegrationServiceClient(connection),
		events:       siemv1.NewEventServiceClient(connection),
		tokens:       credentials,
		timeout:      set.timeout,
		retry:        retry,
		log:          set.log,
	}
	client.ctx, client.cancel = context.WithCancel(context.Background())
	if credentials != nil {
		credentials.client = client.ctx
	}
	return client, nil
}

func (o *options) tokens() (*tokens, error) {
	ways := 0
	var result *tokens
	if o.token != nil {
		ways++
		var err error
		if result, err = fixedToken(*o.token); err != nil {
			return nil, err
		}
	}
	if o.tokenFile != "" {
		ways++
		result = &tokens{fetch: readTokenFile(o.tokenFile), state: tokenState{reread: fileInterval}}
	}
	if o.tokenFunc != nil {
		ways++
		result = &tokens{fetch: o.tokenFunc}
	}
	if ways > 1 {
		return nil, configurationError("token: give one of a token, a file and a function")
	}
	return result, nil
}

// Close ends all calls and the connection. Close publishers before: their events would be unacknowledged.
func (c *Client) Close() error {
	c.cancel()
	// CANCELLED is the answer to a second call.
	if err := c.connection.Close(); status.Code(err) != codes.Canceled {
		return err
	}
	return nil
}

// Configure creates or replaces the integration of an organization. With an etag it is not sent again after a lost
// answer.
func (c *Client) Configure(ctx context.Context, request *siemv1.ConfigureRequest) (*siemv1.ConfigureResponse, error) {
	// A second one with an etag would be refused although the first has succeeded.
	return call(ctx, c, request.GetEtag() == "", c.integrations.Configure, request)
}

// GenerateExternalId issues a new external ID to an organization. It is not sent again after a lost answer.
//
//lint:ignore ST1003 the name of the RPC
func (c *Client) GenerateExternalId(ctx context.Context, request *siemv1.GenerateExternalIdRequest) (*siemv1.GenerateExternalIdResponse, error) {
	return call(ctx, c, false, c.integrations.GenerateExternalId, request)
}

// GetOnboarding returns the documents that a customer applies in its AWS account.
func (c *Client) GetOnboarding(ctx context.Context, request *siemv1.GetOnboardingRequest) (*siemv1.GetOnboardingResponse, error) {
	return call(ctx, c, true, c.integrations.GetOnboarding, request)
}

// Get returns an integration with its status and counts.
func (c *Client) Get(ctx context.Context, request *siemv1.GetRequest) (*siemv1.GetResponse, error) {
	return call(ctx, c, true, c.integrations.Get, request)
}

// List returns one page of the integrations of all organizations.
func (c *Client) List(ctx context.Context, request *siemv1.ListRequest) (*siemv1.ListResponse, error) {
	return call(ctx, c, true, c.integrations.List, request)
}

// Delete removes an integration and its pending events. Without AllowMissing it is not sent again after a lost answer.
func (c *Client) Delete(ctx context.Context, request *siemv1.DeleteRequest) (*siemv1.DeleteResponse, error) {
	return call(ctx, c, request.GetAllowMissing(), c.integrations.Delete, request)
}

// SendTest writes a test event, and returns the verdict. It is not sent again after a lost answer.
func (c *Client) SendTest(ctx context.Context, request *siemv1.SendTestRequest) (*siemv1.SendTestResponse, error) {
	return call(ctx, c, false, c.integrations.SendTest, request)
}

// ListAuditEntries returns one page of the audit, newest first.
func (c *Client) ListAuditEntries(ctx context.Context, request *siemv1.ListAuditEntriesRequest) (*siemv1.ListAuditEntriesResponse, error) {
	return call(ctx, c, true, c.integrations.ListAuditEntries, request)
}

// Publish publishes at most 1,000 events and 4 MiB in one call, which is sent again after failures. Temporary rejections
// are returned like others; a Publisher sends those events again.
func (c *Client) Publish(ctx context.Context, request *siemv1.PublishRequest) (*siemv1.PublishResponse, error) {
	return call(ctx, c, true, c.events.Publish, request)
}

// bearer returns the token for an attempt; empty for a client without token.
func (c *Client) bearer(ctx context.Context) (string, *Error) {
	if c.tokens == nil {
		return "", nil
	}
	return c.tokens.get(ctx)
}

// withBearer returns the context of an attempt.
func withBearer(ctx context.Context, token string) context.Context {
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// pause waits. It returns false if the context or the client has ended before.
func (c *Client) pause(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	case <-c.ctx.Done():
		return false
	}
}

// call makes a call, with as many attempts as its deadline and its kind allow.
func call[Q, R any](ctx context.Context, c *Client, resend bool, rpc func(context.Context, Q, ...grpc.CallOption) (R, error), request Q) (R, error) {
	var none R
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.timeout)
		defer cancel()
	}
	deadline, _ := ctx.Deadline()
	attempts := attempts{options: c.retry, uniform: random, deadline: deadline, resend: resend}
	for {
		if c.ctx.Err() != nil {
			return none, ErrClosed
		}
		token, failure := c.bearer(ctx)
		if failure == nil {
			sent := new(atomic.Bool)
			answer, err := rpc(context.WithValue(withBearer(ctx, token), sentKey{}, sent), request)
			if err == nil {
				return answer, nil
			}
			failure = fromRPC(ctx, err)
			failure.unsent = !sent.Load()
			if failure.Code == codes.Internal && strings.HasPrefix(failure.Message, encodingProblem) {
				return none, configurationError("the request cannot be encoded: %s", failure.Message)
			}
		}
		if c.ctx.Err() != nil {
			return none, fmt.Errorf("%w; the last failure: %w", ErrClosed, failure)
		}
		wait, refresh, final := attempts.failed(failure, time.Now(), c.tokens.canChange())
		if final != nil {
			return none, final
		}
		if refresh {
			c.tokens.refused(token)
			continue
		}
		c.log.Info("an attempt failed", "attempt", failure.Attempts, "wait", wait, "error", failure)
		if !c.pause(ctx, wait) {
			if c.ctx.Err() != nil {
				return none, fmt.Errorf("%w; the last failure: %w", ErrClosed, failure)
			}
			// The deadline is after the wait, so that the caller has cancelled the call.
			failure = newError(codes.Canceled, fmt.Sprintf("%v; the attempt before failed: %v", ctx.Err(), failure))
			failure.Attempts, failure.cause = attempts.failures, ctx.Err()
			return none, failure
		}
	}
}

// discard is the logger of a client without one.
type discard struct{}

func (discard) Enabled(context.Context, slog.Level) bool  { return false }
func (discard) Handle(context.Context, slog.Record) error { return nil }
func (d discard) WithAttrs([]slog.Attr) slog.Handler      { return d }
func (d discard) WithGroup(string) slog.Handler           { return d }
