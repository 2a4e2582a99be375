package siem

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"

	siemv1 "github.com/siem-relay/siem-relay/clients/go/siem/v1"
)

const defaultSilenceLimit = 90 * time.Second

// StatusSnapshot has the complete current statuses. It replaces everything that the watch returned before.
type StatusSnapshot struct {
	// Statuses has the current status of each integration, by organization.
	Statuses map[string]*siemv1.StatusCurrent
	// Absent has those of the named organizations that have no integration, sorted.
	Absent []string
}

// StatusEvent is an event of a watch: a new picture, or a change of it. Exactly one field is not nil.
type StatusEvent struct {
	// Snapshot is a new picture.
	Snapshot *StatusSnapshot
	// Current is the new status of one integration.
	Current *siemv1.StatusCurrent
	// Deleted is an integration that was deleted.
	Deleted *siemv1.StatusDeleted
	// Absent is a named organization that has no integration.
	Absent *siemv1.StatusAbsent
}

// watchState is the state of a watch between messages. No I/O.
type watchState struct {
	organizationIDs []string
	retry           RetryOptions
	uniform         uniform
	// Token of the last message, and that of the last returned event.
	token, returned string
	// The token in the request of the current stream.
	sentToken string
	// The incomplete picture; nil while changes are returned one by one.
	snapshot  map[string]*siemv1.StatusCurrent
	absent    map[string]bool
	failures  int
	refreshed bool
}

func newWatchState(organizationIDs []string, resumeToken string, retry RetryOptions, uniform uniform) *watchState {
	state := &watchState{
		organizationIDs: slices.Clone(organizationIDs),
		retry:           retry,
		uniform:         uniform,
		token:           resumeToken,
		returned:        resumeToken,
	}
	if resumeToken == "" {
		state.startSnapshot()
	}
	return state
}

func (s *watchState) startSnapshot() {
	s.snapshot, s.absent = map[string]*siemv1.StatusCurrent{}, map[string]bool{}
}

// request returns the request of the next stream.
func (s *watchState) request() *siemv1.StreamStatusRequest {
	s.sentToken = s.token
	return &siemv1.StreamStatusRequest{OrganizationIds: s.organizationIDs, ResumeToken: s.token}
}

// received takes a message. It returns the event to return, if there is one.
func (s *watchState) received(message *siemv1.StreamStatusResponse) (StatusEvent, bool) {
	s.failures, s.refreshed = 0, false
	if message.GetReset_() != nil {
		// The token that was sent has been refused, and must not be sent again.
		s.token = message.GetResumeToken()
		if s.token == s.sentToken {
			s.token = ""
		}
		s.startSnapshot()
		return StatusEvent{}, false
	}
	if message.GetResumeToken() != "" {
		s.token = message.GetResumeToken()
	}
	if s.snapshot == nil {
		s.returned = s.token
		event := StatusEvent{Current: message.GetCurrent(), Deleted: message.GetDeleted(), Absent: message.GetAbsent()}
		return event, event != StatusEvent{}
	}
	if current := message.GetCurrent(); current != nil {
		s.snapshot[current.GetOrganizationId()] = current
		delete(s.absent, current.GetOrganizationId())
	} else if deleted := message.GetDeleted(); deleted != nil {
		delete(s.snapshot, deleted.GetOrganizationId())
		if slices.Contains(s.organizationIDs, deleted.GetOrganizationId()) {
			s.absent[deleted.GetOrganizationId()] = true
		}
	} else if absent := message.GetAbsent(); absent != nil {
		delete(s.snapshot, absent.GetOrganizationId())
		s.absent[absent.GetOrganizationId()] = true
	} else if message.GetSynced() != nil {
		snapshot := &StatusSnapshot{Statuses: s.snapshot, Absent: make([]string, 0, len(s.absent))}
		for name := range s.absent {
			snapshot.Absent = append(snapshot.Absent, name)
		}
		slices.Sort(snapshot.Absent)
		s.snapshot, s.absent = nil, nil
		s.returned = s.token
		return StatusEvent{Snapshot: snapshot}, true
	}
	return StatusEvent{}, false
}

// failed takes the end of a stream. It returns the wait until the next one, which is 0 with refresh: it then follows at
// once with a new bearer token. With an error the stream would be refused again.
func (s *watchState) failed(failure *Error, tokenCanChange bool) (wait time.Duration, refresh bool, err *Error) {
	if failure.Code == codes.Unauthenticated && tokenCanChange && !s.refreshed {
		s.refreshed = true
		return 0, true, nil
	}
	if failure.Code == codes.InvalidArgument && s.sentToken != "" && slices.ContainsFunc(failure.Violations,
		func(each Violation) bool { return each.Field == "resume_token" }) {
		// Nothing is known of the changes since then: a new picture.
		s.token = ""
		s.startSnapshot()
		return 0, false, nil
	}
	if isFinal(failure.Code) || isBadRequest(failure.Code) ||
		(failure.Code == codes.ResourceExhausted && failure.RetryDelay == nil) {
		return 0, false, failure
	}
	wait = s.retry.wait(failure, s.failures, s.uniform)
	s.failures++
	return wait, false, nil
}

// WatchOptions has the options of Client.WatchStatus.
type WatchOptions struct {
	// OrganizationIDs has at most 1,000 organizations; none means all.
	OrganizationIDs []string
	// ResumeToken is that of an earlier watch, to continue after its last event.
	ResumeToken string
	// SilenceLimit is the time without a message after which the stream is opened again. It must exceed the server's
	// setting heartbeat-seconds. 0 means 90 s.
	SilenceLimit time.Duration
}

// StatusWatch follows the statuses. Recv returns a StatusSnapshot, then each change. A broken stream is opened again and
// continues after its last message.
//
// One goroutine at a time may call Recv or All; any may call the other methods.
type StatusWatch struct {
	client  *Client
	silence time.Duration
	// Ends with the caller's context, or Close.
	ctx, caller context.Context
	cancel      context.CancelFunc

	// Belongs to Recv.
	stream    siemv1.SiemIntegrationService_StreamStatusClient
	endStream context.CancelFunc
	silent    *atomic.Bool
	bearer    string
	final     error

	// Guards the state, of which ResumeToken reads.
	mu    sync.Mutex
	state *watchState
}

// WatchStatus returns a watch of the statuses. It ends with the context, or Close. Its error is of the type
// *ConfigurationError.
func (c *Client) WatchStatus(ctx context.Context, options WatchOptions) (*StatusWatch, error) {
	if options.SilenceLimit < 0 {
		return nil, configurationError("SilenceLimit: %v is negative", options.SilenceLimit)
	}
	if options.SilenceLimit == 0 {
		options.SilenceLimit = defaultSilenceLimit
	}
	watch := &StatusWatch{
		client:  c,
		silence: options.SilenceLimit,
		caller:  ctx,
		state:   newWatchState(options.OrganizationIDs, options.ResumeToken, c.retry, random),
	}
	watch.ctx, watch.cancel = context.WithCancel(ctx)
	return watch, nil
}

// ResumeToken returns the token that continues after the last returned event; empty before the first one.
func (w *StatusWatch) ResumeToken() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state.returned
}

// Close ends the watch: Recv returns ErrClosed.
func (w *StatusWatch) Close() { w.cancel() }

// Recv waits for the next event. It fails with an *Error if the server refuses the stream, for example with
// PERMISSION_DENIED; with ErrClosed after Close; with the error of the context of the watch, if that ends.
func (w *StatusWatch) Recv() (StatusEvent, error) {
	for {
		if err := w.over(); err != nil {
			return StatusEvent{}, err
		}
		message, failure := w.next()
		if failure == nil {
			w.mu.Lock()
			event, ok := w.state.received(message)
			w.mu.Unlock()
			if ok {
				return event, nil
			}
			continue
		}
		w.stop()
		if w.over() != nil {
			continue
		}
		w.mu.Lock()
		wait, refresh, final := w.state.failed(failure, w.client.tokens.canChange())
		w.mu.Unlock()
		if final != nil {
			w.final = final
			continue
		}
		if refresh {
			w.client.tokens.refused(w.bearer)
			continue
		}
		w.client.log.Info("the status stream broke", "wait", wait, "error", failure)
		w.client.pause(w.ctx, wait)
	}
}

// over returns the error with which the watch has ended; nil if it has not.
func (w *StatusWatch) over() error {
	switch {
	case w.final != nil:
	case w.caller.Err() != nil:
		w.final = w.caller.Err()
	case w.ctx.Err() != nil || w.client.ctx.Err() != nil:
		w.final = ErrClosed
	default:
		return nil
	}
	w.stop()
	return w.final
}

// stop ends the current stream.
func (w *StatusWatch) stop() {
	if w.endStream != nil {
		w.endStream()
	}
	w.stream, w.endStream = nil, nil
}

// next returns the next message, of a new stream if there is none. The time between two calls is not silence.
func (w *StatusWatch) next() (*siemv1.StreamStatusResponse, *Error) {
	if w.endStream == nil {
		w.silent = new(atomic.Bool)
		var ctx context.Context
		ctx, w.endStream = context.WithCancel(w.ctx)
		if failure := w.guarded(func() *Error { return w.open(ctx) }); failure != nil {
			return nil, failure
		}
	}
	var message *siemv1.StreamStatusResponse
	failure := w.guarded(func() *Error {
		var err error
		if message, err = w.stream.Recv(); errors.Is(err, io.EOF) {
			return newError(codes.Unavailable, "the server ended the stream")
		} else if err != nil {
			return fromRPC(w.ctx, err)
		}
		return nil
	})
	return message, failure
}

// open opens a stream.
func (w *StatusWatch) open(ctx context.Context) *Error {
	bearer, failure := w.client.bearer(ctx)
	if failure != nil {
		return failure
	}
	w.bearer = bearer
	w.mu.Lock()
	request := w.state.request()
	w.mu.Unlock()
	var err error
	if w.stream, err = w.client.integrations.StreamStatus(withBearer(ctx, bearer), request); err != nil {
		return fromRPC(w.ctx, err)
	}
	return nil
}

// guarded ends the stream if a step of it takes too long.
func (w *StatusWatch) guarded(step func() *Error) *Error {
	silent, end := w.silent, w.endStream
	timer := time.AfterFunc(w.silence, func() {
		silent.Store(true)
		end()
	})
	failure := step()
	timer.Stop()
	if failure != nil && silent.Load() {
		return newError(codes.Unavailable, "the server is silent")
	}
	return failure
}
