package siem

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	siemv1 "github.com/siem-relay/siem-relay/clients/go/siem/v1"
)

func tokensOf(t *testing.T, fetch TokenFunc) *tokens {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return &tokens{client: ctx, fetch: fetch}
}

func TestAHundredGoroutinesFetchOnce(t *testing.T) {
	var calls atomic.Int32
	asked := make(chan struct{}, 200)
	tokens := tokensOf(t, func(context.Context) (Token, error) {
		for range make([]int, 100) {
			<-asked
		}
		return Token{Value: fmt.Sprintf("token-%d", calls.Add(1))}, nil
	})
	for _, wanted := range []string{"token-1", "token-2"} {
		var all sync.WaitGroup
		for number := 0; number < 100; number++ {
			all.Add(1)
			go func() {
				defer all.Done()
				asked <- struct{}{}
				if value, failure := tokens.get(limited(t)); failure != nil || value != wanted {
					t.Errorf("%q, %v instead of %q", value, failure, wanted)
				}
			}()
		}
		all.Wait()
		// All of them were refused with the same token.
		for number := 0; number < 100; number++ {
			tokens.refused("token-1")
		}
	}
	equal(t, "calls", calls.Load(), 2)
}

func TestAFailingTokenFunctionIsNotCalledByEachCall(t *testing.T) {
	var calls atomic.Int32
	down := errors.New("the issuer is down")
	tokens := tokensOf(t, func(context.Context) (Token, error) {
		calls.Add(1)
		return Token{}, down
	})
	for number := 0; number < 20; number++ {
		_, failure := tokens.get(limited(t))
		if failure == nil || failure.Code != codes.Unavailable || !errors.Is(failure, down) {
			t.Fatal(failure)
		}
	}
	equal(t, "calls", calls.Load(), 1)
}

func TestAHangingTokenFunctionDoesNotOutlastTheDeadline(t *testing.T) {
	client := connected(t, "localhost:1", WithTokenFunc(func(ctx context.Context) (Token, error) {
		<-ctx.Done()
		return Token{}, ctx.Err()
	}))
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := client.Get(ctx, get)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "the token could not be fetched") {
		t.Fatal(err)
	}
}

func TestATokenIsFetchedAheadAndTheOldOneSentMeanwhile(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	after := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	var state tokenState
	state.fetched(Token{Value: "a", ExpiresAt: after(1000)}, start)
	equal(t, "at 79 %", state.wantsFetch(after(799)), false)
	equal(t, "at 80 %", state.wantsFetch(after(801)), true)
	equal(t, "meanwhile", state.usable(after(900)), "a")
	equal(t, "in its last moments", state.usable(after(996)), "")
	// A failure does not end the use of the old token, and is not repeated at once.
	state.failed(errors.New("down"), after(801))
	equal(t, "after a failure", state.usable(after(802)), "a")
	equal(t, "during the pause", state.wantsFetch(after(801)), false)
	equal(t, "after the pause", state.wantsFetch(after(802)), true)
	// The clock of the issuer is behind: the server decides.
	state.fetched(Token{Value: "b", ExpiresAt: after(0)}, after(10))
	equal(t, "a token that looks expired", state.usable(after(39)), "b")
	equal(t, "its next fetch", state.wantsFetch(after(41)), true)
	// A file is read every minute, whatever its token says.
	file := tokenState{reread: fileInterval}
	file.fetched(Token{Value: "c", ExpiresAt: after(1000)}, start)
	equal(t, "before a minute", file.wantsFetch(after(59)), false)
	equal(t, "after a minute", file.wantsFetch(after(61)), true)
}

func jwt(claims any) Token {
	content, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	return Token{Value: "e30." + base64.RawURLEncoding.EncodeToString(content) + ".c2ln"}
}

func TestTheExpiryOfAJWTIsRead(t *testing.T) {
	expiry, ok := jwt(map[string]any{"exp": 1_700_000_000.5}).expiry()
	equal(t, "found", ok, true)
	equal(t, "expiry", expiry.UnixMilli(), 1_700_000_000_500)
	for _, each := range []Token{
		{Value: "opaque"}, {Value: "a.b.c"}, {Value: "e30.!!.c2ln"}, jwt(map[string]any{"exp": "soon"}),
		jwt([]int{1}), jwt(nil), jwt(map[string]any{"exp": 1e300}), jwt(map[string]any{}),
	} {
		if _, ok := each.expiry(); ok {
			t.Fatal("a token without expiry", each.Value)
		}
	}
}

func TestATokenIsNotPrinted(t *testing.T) {
	token := Token{Value: "secret"}
	encoded, err := json.Marshal(token)
	must(t, err)
	tls := TLS{Key: []byte("secret")}
	for _, text := range []string{
		fmt.Sprint(token), fmt.Sprintf("%+v %#v %v", token, token, []Token{token}), string(encoded),
		fmt.Sprintf("%v %+v %#v", tls, tls, tls),
	} {
		equal(t, "printed "+text, strings.Contains(text, "secret"), false)
	}
}

func TestATokenFileIsReadAgainWhenTheTokenIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	must(t, os.WriteFile(path, []byte("old\n"), 0o600))
	var seen []string
	server := &fake{get: func(ctx context.Context, _ *siemv1.GetRequest) (*siemv1.GetResponse, error) {
		values, _ := metadata.FromIncomingContext(ctx)
		seen = append(seen, values.Get("authorization")...)
		if seen[len(seen)-1] != "Bearer new" {
			must(t, os.WriteFile(path, []byte("new\n"), 0o600))
			return nil, planned(codes.Unauthenticated, "UNAUTHENTICATED", 0)
		}
		return got, nil
	}}
	server.serve(t)
	client := connected(t, server.address, WithTokenFile(path))
	_, err := client.Get(limited(t), get)
	must(t, err)
	equal(t, "tokens", strings.Join(seen, ", "), "Bearer old, Bearer new")
}

func TestNoTokenInClear(t *testing.T) {
	for _, address := range []string{"http://192.0.2.1:50051", "relay.example.com:50051", "http://[2001:db8::1]:1"} {
		for _, option := range []Option{
			WithToken("secret"), WithTokenFile("/nonexistent"),
			WithTokenFunc(func(context.Context) (Token, error) { return Token{}, nil }),
		} {
			_, err := Connect(address, option)
			var refused *ConfigurationError
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), "in clear") {
				t.Fatal(address, err)
			}
		}
	}
	for _, address := range []string{"http://localhost:1", "127.0.0.9:1", "http://[::1]:1", "https://relay.example.com"} {
		client, err := Connect(address, WithToken("secret"))
		must(t, err)
		must(t, client.Close())
	}
}

func TestBadOptions(t *testing.T) {
	directory := t.TempDir()
	text := filepath.Join(directory, "text")
	must(t, os.WriteFile(text, []byte("no certificate"), 0o600))
	for _, each := range []struct {
		address string
		option  Option
		problem string
	}{
		{"ftp://a:1", fast, `the scheme is "ftp"`},
		{"http://", fast, "is not of the form"},
		{"http://a:1/path", fast, "is not of the form"},
		{"http://user@a:1", fast, "is not of the form"},
		{"http://a:b", fast, "is not of the form"},
		{"http://a:70000", fast, "no port from 1 to 65535"},
		{"http://localhost:1", WithTLS(TLS{}), "plaintext, but TLS is given"},
		{"localhost:1", WithTLS(TLS{CAFile: filepath.Join(directory, "absent")}), "TLS.CAFile: open"},
		{"localhost:1", WithTLS(TLS{CAFile: text}), "TLS.CA: this is no PEM"},
		{"localhost:1", WithTLS(TLS{CA: []byte("x"), CAFile: text}), "both given"},
		{"localhost:1", WithTLS(TLS{CA: []byte("-----BEGIN x")}), "no certificate that can be read"},
		{"localhost:1", WithTLS(TLS{Key: []byte("-----BEGIN x")}), "must be given together"},
		{"localhost:1", WithTLS(TLS{Key: []byte("-----BEGIN x"), Certificate: []byte("-----BEGIN x")}), "TLS.Certificate"},
		{"localhost:1", WithToken("two words"), "characters that a bearer token cannot have"},
		{"localhost:1", WithToken(""), "the token is empty"},
		{"localhost:1", WithTimeout(0), "is not positive"},
		{"localhost:1", WithRetry(RetryOptions{MinWait: -1}), "cannot be negative"},
		{"localhost:1", WithLogger(nil), "leave the option out"},
	} {
		_, err := Connect(each.address, each.option)
		var refused *ConfigurationError
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), each.problem) {
			t.Errorf("%s: %v, without %q", each.address, err, each.problem)
		}
	}
	_, err := Connect("localhost:1", WithToken("a"), WithTokenFile(text))
	if err == nil || !strings.Contains(err.Error(), "give one of") {
		t.Error(err)
	}
	client := connected(t, "localhost:1")
	for _, options := range []PublisherOptions{
		{MaxRequestsInFlight: 65}, {MaxBatchEvents: 1001}, {MaxBatchBytes: 5 << 20}, {MaxBytesInFlight: -1}, {AnswerTimeout: -1},
	} {
		if _, err := client.Publisher(options); err == nil {
			t.Errorf("%+v are accepted", options)
		}
	}
	if _, err := client.WatchStatus(context.Background(), WatchOptions{SilenceLimit: -1}); err == nil {
		t.Error("a negative SilenceLimit is accepted")
	}
}
