package siem

import (
	"fmt"
	"math"
	"math/rand"
	"time"

	"google.golang.org/grpc/codes"

	siemv1 "github.com/siem-relay/siem-relay/clients/go/siem/v1"
)

// RetryOptions has the waits between attempts.
type RetryOptions struct {
	// MinWait is the wait after the first failure, doubled with each further one in a row. 0 means 100 ms.
	MinWait time.Duration
	// MaxWait is the longest wait, unless the server asks for a longer one. 0 means 5 s.
	MaxWait time.Duration
}

func (o RetryOptions) withDefaults() (RetryOptions, error) {
	if o.MinWait < 0 || o.MaxWait < 0 {
		return o, configurationError("retry: waits of %v and %v; they cannot be negative", o.MinWait, o.MaxWait)
	}
	if o.MinWait == 0 {
		o.MinWait = 100 * time.Millisecond
	}
	if o.MaxWait == 0 {
		o.MaxWait = 5 * time.Second
	}
	return o, nil
}

// uniform returns a random number of a range. Tests replace it.
type uniform func(low, high float64) float64

func random(low, high float64) float64 { return low + rand.Float64()*(high-low) }

func scaled(wait time.Duration, factor float64) time.Duration {
	return time.Duration(min(float64(wait)*factor, math.MaxInt64/2))
}

// backoff returns the wait after this number of earlier failures in a row. The jitter follows the limit, so that
// clients stay spread once they have reached it.
func (o RetryOptions) backoff(failures int, uniform uniform) time.Duration {
	wait := min(scaled(o.MinWait, math.Exp2(float64(min(failures, 60)))), o.MaxWait)
	return scaled(wait, uniform(0.5, 1))
}

// wait returns the wait after a failure, never shorter than the server asked for.
func (o RetryOptions) wait(failure *Error, failures int, uniform uniform) time.Duration {
	wait := o.backoff(failures, uniform)
	if failure.RetryDelay != nil {
		wait = max(wait, scaled(*failure.RetryDelay, uniform(1, 1.25)))
	}
	return wait
}

// isTemporary returns whether the same call can succeed later. With resend, it may be sent twice although the first
// one may have taken effect.
func isTemporary(failure *Error, resend bool) bool {
	if failure.Code == codes.ResourceExhausted {
		// The server refused the request before it did anything.
		return failure.RetryDelay != nil
	}
	if failure.Code == codes.Unavailable || isTransportLoss(failure) {
		// With STORAGE_FAILED the server says that it did nothing. SHUTTING_DOWN may end a test event that is written.
		return resend || failure.unsent || failure.Reason == siemv1.ErrorReason_ERROR_REASON_STORAGE_FAILED
	}
	return false
}

// attempts has the state of one call, whose attempts share one deadline. No I/O; times are arguments.
type attempts struct {
	options   RetryOptions
	uniform   uniform
	deadline  time.Time
	resend    bool
	failures  int
	refreshed bool
	last      *Error
}

// failed takes a failure. It returns the wait until the next attempt, which is 0 with refresh: it then follows at once
// with a new token. With an error the call has failed for good.
func (a *attempts) failed(failure *Error, now time.Time, tokenCanChange bool) (wait time.Duration, refresh bool, err *Error) {
	failure.Attempts = a.failures + 1
	if failure.Code == codes.Unauthenticated && tokenCanChange && !a.refreshed {
		a.refreshed = true
		a.failures++
		return 0, true, nil
	}
	if !isTemporary(failure, a.resend) {
		return 0, false, a.explained(failure)
	}
	wait = a.options.wait(failure, a.failures, a.uniform)
	if wait >= a.deadline.Sub(now) {
		return 0, false, failure
	}
	a.failures++
	a.last = failure
	return wait, false, nil
}

// explained adds to the end of a deadline the reason for which it was used up.
func (a *attempts) explained(failure *Error) *Error {
	if failure.ReasonName != "" || (failure.Code != codes.DeadlineExceeded && failure.Code != codes.Canceled) {
		return failure
	}
	if failure.unsent {
		failure.Message += "; the call was not sent, because there was no connection in time, or the connection" +
			" has as many open calls, watches and publishers as the server allows"
	}
	if a.last != nil {
		failure.Message = fmt.Sprintf("%s; the attempt before failed: %v", failure.Message, a.last)
	}
	return failure
}
