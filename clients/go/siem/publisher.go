package siem

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	siemv1 "github.com/siem-relay/siem-relay/clients/go/siem/v1"
)

const (
	defaultCloseTimeout = 30 * time.Second
	publishTokenTimeout = 30 * time.Second
	// Time that the server has to end a stream whose requests are all answered.
	streamEndTimeout = time.Second
)

// Publisher publishes events over PublishStream, and opens the stream again whenever it breaks. Client.Publisher makes it.
//
// Unanswered events are kept and sent again, unchanged and so under the same CloudEvents ids: none is lost, and consumers
// drop those that were accepted twice. Events of a device keep their order. A temporary rejection (OVERLOADED,
// RATE_LIMITED) defers the event and later ones of its device; other devices go on.
//
// It may be used by many goroutines.
type Publisher struct {
	client *Client
	ctx    context.Context
	cancel context.CancelFunc
	// Closed when the goroutine of the streams has ended.
	ended chan struct{}

	mu   sync.Mutex
	core *publishCore
	// Closed and replaced with each change that somebody may wait for.
	changed chan struct{}
	started bool
	closing bool
	failure error
}

// Publisher returns a publisher for many events. Close it. Its error is of the type *ConfigurationError.
func (c *Client) Publisher(options PublisherOptions) (*Publisher, error) {
	core, err := newPublishCore(options, random)
	if err != nil {
		return nil, err
	}
	publisher := &Publisher{client: c, core: core, changed: make(chan struct{}), ended: make(chan struct{})}
	publisher.ctx, publisher.cancel = context.WithCancel(c.ctx)
	return publisher, nil
}

// Stats returns the counts so far.
func (p *Publisher) Stats() PublisherStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.core.stats
}

// Send queues an event, and waits while too many are unanswered. Later changes of the event have no effect. It returns
// the answer that will come, which may be dropped.
//
// It fails with the error of the context, if that ends before there is capacity; with ErrClosed, if the publisher is
// closed or has ended; with a *ConfigurationError, if the event cannot be encoded. The event is not queued then.
func (p *Publisher) Send(ctx context.Context, event *siemv1.Event) (*Answer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	added, err := newItem(event)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if p.failure != nil {
			return nil, fmt.Errorf("%w: the publisher has ended: %w", ErrClosed, p.failure)
		}
		if p.closing {
			return nil, fmt.Errorf("%w: the publisher is closed", ErrClosed)
		}
		if p.core.hasCapacity(added.weight()) {
			break
		}
		// Events that linger would be waited for in vain.
		p.core.flush()
		if err := p.wait(ctx); err != nil {
			return nil, fmt.Errorf("siem: no capacity for the event: %w", err)
		}
	}
	isDue := p.core.add(added, time.Now())
	if !p.started {
		p.started = true
		go p.run()
	} else if isDue {
		p.wake()
	}
	return added.answer, nil
}

// Flush waits until every event that was sent before has its final answer. It fails with an *UnacknowledgedError if the
// context or the publisher ends before; the publisher continues in the first case.
func (p *Publisher) Flush(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := p.core.flush()
	p.wake()
	for !p.core.isAnswered(last) {
		if p.failure != nil {
			return p.unacknowledged(p.failure.Error(), p.failure)
		}
		if err := p.wait(ctx); err != nil {
			return p.unacknowledged(fmt.Sprintf("not flushed in time: %v", err), err)
		}
	}
	return nil
}

// Close flushes and ends the publisher. It waits until the context ends; for 30 s, if that has no deadline. It fails with
// an *UnacknowledgedError if some events have no final answer then; their answers have the same error. A second call
// returns nil at once.
func (p *Publisher) Close(ctx context.Context) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, defaultCloseTimeout)
		defer cancel()
	}
	p.mu.Lock()
	second, started := p.closing, p.started
	p.closing = true
	p.mu.Unlock()
	if second {
		return nil
	}
	err := p.finish(ctx)
	if started && err == nil {
		timer := time.NewTimer(streamEndTimeout)
		defer timer.Stop()
		select {
		case <-p.ended:
		case <-timer.C:
		}
	}
	p.cancel()
	if started {
		<-p.ended
	}
	return err
}

// finish waits for all answers.
func (p *Publisher) finish(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.core.flush()
	p.wake()
	var ended error
	for ended == nil && p.failure == nil && !p.core.isDone() {
		ended = p.wait(ctx)
	}
	if p.core.isDone() {
		p.wake()
		return nil
	}
	if p.failure != nil {
		return p.unacknowledged(p.failure.Error(), p.failure)
	}
	err := p.unacknowledged(fmt.Sprintf("not closed in time: %v", ended), ended)
	p.fail(err)
	return err
}

// wake resumes everybody who waits. The lock is held.
func (p *Publisher) wake() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// wait waits for the next change, without the lock, which is held before and after.
func (p *Publisher) wait(ctx context.Context) error {
	changed := p.changed
	p.mu.Unlock()
	defer p.mu.Lock()
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *Publisher) unacknowledged(problem string, cause error) error {
	items := p.core.unanswered()
	events := make([]*siemv1.Event, len(items))
	for index, each := range items {
		events[index] = each.event()
	}
	return &UnacknowledgedError{Problem: problem, Unacknowledged: events, cause: cause}
}

// fail ends the publisher, and all answers that are missing. The lock is held.
func (p *Publisher) fail(failure error) {
	p.failure = failure
	for _, each := range p.core.unanswered() {
		each.answer.resolve(PublishResult{}, failure)
	}
	p.wake()
}

func (p *Publisher) isOver() bool {
	return p.failure != nil || (p.closing && p.core.isDone())
}

// run runs streams until the publisher is closed or fails; the body of its goroutine.
func (p *Publisher) run() {
	defer close(p.ended)
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		// No stream is opened before there is something to send.
		for p.core.isDone() && !p.isOver() {
			if p.wait(p.ctx) != nil {
				break
			}
		}
		if p.isOver() {
			return
		}
		if p.ctx.Err() != nil {
			p.fail(fmt.Errorf("%w: the client is closed", ErrClosed))
			return
		}
		p.mu.Unlock()
		token, failure := p.stream()
		p.mu.Lock()
		if p.isOver() || p.ctx.Err() != nil {
			continue
		}
		idle := p.core.isDone()
		wait, refresh, final := p.core.broke(failure, time.Now(), p.client.tokens.canChange())
		if final != nil {
			p.fail(final)
			return
		}
		p.wake()
		if refresh {
			p.client.tokens.refused(token)
			continue
		}
		if !idle {
			p.client.log.Warn("the publish stream broke", "wait", wait, "error", failure)
		}
		p.pause(wait)
	}
}

// pause waits, or until the publisher is over. The lock is held before and after.
func (p *Publisher) pause(wait time.Duration) {
	ctx, cancel := context.WithTimeout(p.ctx, wait)
	defer cancel()
	for !p.isOver() && p.wait(ctx) == nil {
	}
}

// stream runs one stream. It returns the bearer token that was sent, and the reason for which the stream ended.
func (p *Publisher) stream() (string, *Error) {
	fetching, fetched := context.WithTimeout(p.ctx, publishTokenTimeout)
	token, failure := p.client.bearer(fetching)
	fetched()
	if failure != nil {
		return "", failure
	}
	ctx, cancel := context.WithCancel(withBearer(p.ctx, token))
	defer cancel()
	overdue := make(chan struct{})
	late := func() {
		close(overdue)
		cancel()
	}
	opener := time.AfterFunc(p.core.options.AnswerTimeout, late)
	stream, err := p.client.events.PublishStream(ctx)
	if !opener.Stop() {
		return token, newError(codes.Unavailable, "the stream could not be opened in time: there is no connection, or it"+
			" has as many open watches and publishers as the server allows")
	}
	if err != nil {
		return token, fromRPC(p.ctx, err)
	}
	sender := make(chan struct{})
	go func() {
		defer close(sender)
		p.sendRequests(ctx, stream)
	}()
	watchdog := p.watch(late)
	failure = p.readAnswers(ctx, stream)
	select {
	case <-overdue:
		failure = newError(codes.DeadlineExceeded, "the server does not answer")
	default:
	}
	watchdog()
	cancel()
	<-sender
	return token, failure
}

// watch calls a function once the server has not answered for too long. It returns a function that ends that.
func (p *Publisher) watch(late func()) (end func()) {
	var timer *time.Timer
	ended := false
	p.mu.Lock()
	defer p.mu.Unlock()
	timer = time.AfterFunc(p.core.options.AnswerTimeout, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if ended {
			return
		}
		if left := p.core.overdueIn(time.Now()); left > 0 {
			timer.Reset(left)
		} else {
			late()
		}
	})
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		ended = true
		timer.Stop()
	}
}

// readAnswers reads answers until the stream ends, for whatever reason. It returns that.
func (p *Publisher) readAnswers(ctx context.Context, stream siemv1.EventService_PublishStreamClient) *Error {
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return newError(codes.Unavailable, "the server ended the stream")
		}
		if err != nil {
			return fromRPC(ctx, err)
		}
		p.mu.Lock()
		failure := p.core.answered(answer, time.Now())
		p.wake()
		p.mu.Unlock()
		if failure != nil {
			return failure
		}
	}
}

// sendRequests sends the requests of one stream until its context ends, or the publisher is over.
func (p *Publisher) sendRequests(ctx context.Context, stream siemv1.EventService_PublishStreamClient) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for ctx.Err() == nil {
		if p.isOver() {
			// The server ends the stream in answer, and so readAnswers.
			_ = stream.CloseSend()
			return
		}
		now := time.Now()
		if request := p.core.nextRequest(now); request != nil {
			p.mu.Unlock()
			err := stream.Send(request)
			p.mu.Lock()
			if err != nil {
				// Recv has the reason.
				return
			}
			continue
		}
		until, cancel := ctx, context.CancelFunc(func() {})
		if wakeup := p.core.nextWakeup(); !wakeup.IsZero() {
			until, cancel = context.WithTimeout(ctx, max(wakeup.Sub(now), time.Millisecond))
		}
		// Either a change, the time, or the end of the stream.
		_ = p.wait(until)
		cancel()
	}
}
