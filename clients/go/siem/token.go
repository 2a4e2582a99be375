package siem

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
)

const (
	// Part of its lifetime after which a token is replaced.
	refreshAt = 0.8
	// A file may be replaced at any time; a new content is seen after this time.
	fileInterval = time.Minute
	// A fresh token that looks expired: the clocks differ, and the server decides.
	skewedInterval = 30 * time.Second
	// Longest run of a token function that heeds its context.
	fetchTimeout              = 30 * time.Second
	minFetchPause             = time.Second
	maxFetchPause             = 30 * time.Second
	maxTokenBytes             = 64 << 10
	tokenExpiryMargin         = 5 * time.Second
	tokenExpiryMarginFraction = 0.1
)

// RFC 6750, b64token.
var tokenPattern = regexp.MustCompile(`^[A-Za-z0-9\-._~+/]+=*$`)

// Token is a bearer token with its expiry. A JWT needs none: the client reads its claim "exp".
type Token struct {
	// Value is the token, without "Bearer".
	Value string `json:"-"`
	// ExpiresAt is the time of expiry; zero if unknown.
	ExpiresAt time.Time
}

// String returns a text without the token, so that none is printed.
func (t Token) String() string { return fmt.Sprintf("Token{…, %v}", t.ExpiresAt) }

// GoString is String.
func (t Token) GoString() string { return t.String() }

// TokenFunc returns a token. Its context ends after 30 s, or with the client.
type TokenFunc func(context.Context) (Token, error)

func readTokenFile(path string) TokenFunc {
	return func(context.Context) (Token, error) {
		content, err := os.ReadFile(path)
		if err != nil {
			return Token{}, err
		}
		return Token{Value: strings.TrimSpace(string(content))}, nil
	}
}

func checkToken(token Token) error {
	if len(token.Value) > maxTokenBytes {
		return fmt.Errorf("the token has %d bytes; at most %d can be sent", len(token.Value), maxTokenBytes)
	}
	if !tokenPattern.MatchString(token.Value) {
		return errors.New("the token is empty, or has characters that a bearer token cannot have")
	}
	return nil
}

// expiry returns the time of expiry, if it is known.
func (t Token) expiry() (time.Time, bool) {
	if !t.ExpiresAt.IsZero() {
		return t.ExpiresAt, true
	}
	parts := strings.Split(t.Value, ".")
	if len(parts) != 3 {
		return time.Time{}, false
	}
	content, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return time.Time{}, false
	}
	var claims struct {
		Expiry *float64 `json:"exp"`
	}
	// A number of seconds beyond the year 9999 is no time, and may overflow below.
	if json.Unmarshal(content, &claims) != nil || claims.Expiry == nil || *claims.Expiry < 0 || *claims.Expiry > 253402300799 {
		return time.Time{}, false
	}
	return time.UnixMilli(int64(*claims.Expiry * 1000)), true
}

// tokenState is the current token. No I/O; the wall clock is an argument.
type tokenState struct {
	// Interval after which the token is fetched again in any case; 0 for none.
	reread       time.Duration
	value        string
	refreshAt    time.Time
	validUntil   time.Time
	failures     int
	blockedUntil time.Time
	err          error
}

// usable returns the token if it may be sent, else an empty text.
func (s *tokenState) usable(now time.Time) string {
	if !s.validUntil.IsZero() && !now.Before(s.validUntil) {
		return ""
	}
	return s.value
}

// wantsFetch returns whether a new token should be fetched now.
func (s *tokenState) wantsFetch(now time.Time) bool {
	if now.Before(s.blockedUntil) {
		return false
	}
	return s.usable(now) == "" || (!s.refreshAt.IsZero() && !now.Before(s.refreshAt))
}

func (s *tokenState) fetched(token Token, now time.Time) {
	*s = tokenState{reread: s.reread, value: token.Value}
	if s.reread > 0 {
		s.refreshAt = now.Add(s.reread)
	}
	expiry, ok := token.expiry()
	if !ok {
		return
	}
	at := now.Add(skewedInterval)
	if life := expiry.Sub(now); life > 0 {
		at = now.Add(scaled(life, refreshAt))
		// Not sent in its last moments, as it would expire on the way.
		s.validUntil = expiry.Add(-min(tokenExpiryMargin, scaled(life, tokenExpiryMarginFraction)))
	}
	if s.refreshAt.IsZero() || at.Before(s.refreshAt) {
		s.refreshAt = at
	}
}

// failed takes a failure to fetch. The next attempt follows after a pause, for all calls together.
func (s *tokenState) failed(err error, now time.Time) {
	s.err = err
	s.blockedUntil = now.Add(min(minFetchPause<<min(s.failures, 10), maxFetchPause))
	s.failures++
}

// refused drops a token that the server refused, unless another call has replaced it already.
func (s *tokenState) refused(value string) {
	if s.value == value {
		s.value = ""
	}
}

// tokens gives the current token to all calls, and fetches it once for them.
type tokens struct {
	// Ends with the client.
	client context.Context
	// Nil for a token that cannot be replaced, so that only the server decides.
	fetch TokenFunc

	mu    sync.Mutex
	state tokenState
	// Closed when the current fetch has ended; nil without one.
	fetching chan struct{}
}

func fixedToken(value string) (*tokens, error) {
	if err := checkToken(Token{Value: value}); err != nil {
		return nil, configurationError("token: %v", err)
	}
	return &tokens{state: tokenState{value: value}}, nil
}

// canChange returns whether fetching again can give another token.
func (t *tokens) canChange() bool { return t != nil && t.fetch != nil }

// get returns the token, and fetches it where that is needed; UNAVAILABLE if it could not be fetched in time.
func (t *tokens) get(ctx context.Context) (string, *Error) {
	for {
		t.mu.Lock()
		now := time.Now()
		if t.fetch != nil && t.fetching == nil && t.state.wantsFetch(now) {
			t.fetching = make(chan struct{})
			go t.run(t.fetching)
		}
		value, fetching, err := t.state.usable(now), t.fetching, t.state.err
		t.mu.Unlock()
		if value != "" {
			return value, nil
		}
		if fetching == nil {
			return "", unfetched(err)
		}
		select {
		case <-fetching:
		case <-t.client.Done():
			return "", unfetched(ErrClosed)
		case <-ctx.Done():
			failure := unfetched(ctx.Err())
			if ctx.Err() == context.Canceled {
				failure.Code = codes.Canceled
			}
			return "", failure
		}
	}
}

// refused drops a token that the server refused.
func (t *tokens) refused(value string) {
	if t.canChange() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.state.refused(value)
	}
}

func (t *tokens) run(done chan struct{}) {
	ctx, cancel := context.WithTimeout(t.client, fetchTimeout)
	token, err := t.fetch(ctx)
	cancel()
	if err == nil {
		err = checkToken(token)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		t.state.fetched(token, time.Now())
	} else {
		t.state.failed(err, time.Now())
	}
	t.fetching = nil
	close(done)
}

// unfetched returns the error of a call without token.
func unfetched(cause error) *Error {
	failure := newError(codes.Unavailable, fmt.Sprintf("the token could not be fetched: %v", cause))
	failure.cause, failure.unsent = cause, true
	return failure
}
