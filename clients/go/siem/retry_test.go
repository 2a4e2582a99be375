package siem

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	siemv1 "github.com/siem-relay/siem-relay/clients/go/siem/v1"
)

func lowest(low, _ float64) float64   { return low }
func highest(_, high float64) float64 { return high }

func TestTheJitterFollowsTheLimit(t *testing.T) {
	retry, err := RetryOptions{}.withDefaults()
	must(t, err)
	equal(t, "first wait", retry.backoff(0, highest), 100*time.Millisecond)
	equal(t, "fourth wait", retry.backoff(3, highest), 800*time.Millisecond)
	equal(t, "limit", retry.backoff(1000, highest), 5*time.Second)
	equal(t, "spread at the limit", retry.backoff(1000, lowest), 2500*time.Millisecond)
	asked := 30 * time.Second
	equal(t, "never earlier than asked", retry.wait(&Error{RetryDelay: &asked}, 0, lowest), asked)
}

func TestLostTransports(t *testing.T) {
	for _, each := range []struct {
		code    codes.Code
		message string
		reason  string
		lost    bool
	}{
		{codes.Unavailable, "anything", "", true},
		{codes.Unavailable, "anything", "SHUTTING_DOWN", false},
		{codes.Internal, "stream terminated by RST_STREAM with error code: INTERNAL_ERROR", "", true},
		{codes.Internal, "server closed the stream without sending trailers", "", true},
		{codes.Internal, "unexpected EOF", "", true},
		{codes.Canceled, "stream terminated by RST_STREAM with error code: CANCEL", "", true},
		{codes.Unknown, "transport: closing", "", true},
		{codes.Internal, "a defect", "", false},
		{codes.Unknown, "a handler failed", "", false},
		{codes.Canceled, "context canceled", "", false},
		{codes.NotFound, "connection", "", false},
	} {
		failure := newError(each.code, each.message)
		failure.ReasonName = each.reason
		equal(t, each.code.String()+" "+each.message, isTransportLoss(failure), each.lost)
	}
	failure := newError(codes.Canceled, "stream terminated by RST_STREAM with error code: CANCEL")
	failure.cause = context.Canceled
	equal(t, "a call that the caller has ended", isTransportLoss(failure), false)
}

func TestCallsThatAreNeverSentTwice(t *testing.T) {
	lost := newError(codes.Unavailable, "lost")
	equal(t, "a lost answer", isTemporary(lost, false), false)
	equal(t, "a lost answer of a call that may be repeated", isTemporary(lost, true), true)
	lost.unsent = true
	equal(t, "a call that was not sent", isTemporary(lost, false), true)
	stored := newError(codes.Unavailable, "")
	stored.Reason, stored.ReasonName = siemv1.ErrorReason_ERROR_REASON_STORAGE_FAILED, "STORAGE_FAILED"
	equal(t, "nothing was done", isTemporary(stored, false), true)
	equal(t, "a limit without a delay", isTemporary(newError(codes.ResourceExhausted, ""), true), false)
}

func TestOneDeadlineOverAllAttempts(t *testing.T) {
	retry, err := RetryOptions{}.withDefaults()
	must(t, err)
	now := time.Unix(0, 0)
	attempts := attempts{options: retry, uniform: highest, deadline: now.Add(time.Second), resend: true}
	count := 0
	for {
		count++
		failure := newError(codes.Unavailable, "planned")
		wait, _, final := attempts.failed(failure, now, false)
		if final != nil {
			equal(t, "number of attempts", final.Attempts, count)
			break
		}
		now = now.Add(wait)
	}
	if count != 4 || now.After(time.Unix(1, 0)) {
		t.Fatalf("%d attempts until %v", count, now)
	}
	_, _, final := attempts.failed(newError(codes.DeadlineExceeded, "late"), now, false)
	if !strings.Contains(final.Message, "the attempt before failed: siem: UNAVAILABLE: planned") {
		t.Fatal(final.Message)
	}
}

func TestDetailsAreReadWhateverTheyAre(t *testing.T) {
	other, err := anypb.New(&errdetails.ErrorInfo{Domain: "example.com", Reason: "OTHER"})
	must(t, err)
	info, err := anypb.New(&errdetails.ErrorInfo{Domain: "siem.v1", Reason: "NEWER"})
	must(t, err)
	retry, err := anypb.New(&errdetails.RetryInfo{RetryDelay: durationpb.New(-time.Second)})
	must(t, err)
	failure := fromStatus(status.FromProto(&spb.Status{Code: 99, Message: "planned", Details: []*anypb.Any{
		{TypeUrl: "type.googleapis.com/google.rpc.ErrorInfo", Value: []byte("\xff")},
		{TypeUrl: "type.googleapis.com/unknown.Type", Value: []byte("x")},
		info, other, retry,
	}}))
	equal(t, "code", failure.Code, codes.Unknown)
	equal(t, "reason", failure.Reason, siemv1.ErrorReason_ERROR_REASON_UNSPECIFIED)
	equal(t, "name of the reason", failure.ReasonName, "NEWER")
	equal(t, "delay", *failure.RetryDelay, 0)
	equal(t, "text", failure.Error(), "siem: UNKNOWN/NEWER: planned")
	var found *Error
	equal(t, "errors.As", errors.As(error(failure), &found), true)
}
