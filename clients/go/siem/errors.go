package siem

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	siemv1 "github.com/siem-relay/siem-relay/clients/go/siem/v1"
)

const errorDomain = "siem.v1"

// ErrClosed is the error of a call on a client, a watch or a publisher that is closed.
var ErrClosed = errors.New("siem: closed")

// ConfigurationError is the error of an argument that cannot be used; nothing was sent.
type ConfigurationError struct {
	// Problem names the argument, the problem and the remedy.
	Problem string
}

// Error returns the problem.
func (e *ConfigurationError) Error() string { return "siem: " + e.Problem }

func configurationError(format string, arguments ...any) error {
	return &ConfigurationError{Problem: fmt.Sprintf(format, arguments...)}
}

// Violation is one violated field of a request.
type Violation struct {
	// Field is the path of the field, such as "kinesis_stream_arn".
	Field string
	// Description is the problem and the remedy, in English.
	Description string
}

// Error is the error of a failed call. errors.As finds it, status.FromError returns its gRPC status, and errors.Is
// finds context.Canceled or context.DeadlineExceeded if the context of the call has ended.
type Error struct {
	// Code is the gRPC code.
	Code codes.Code
	// Message is that of the server, or of gRPC if no server answered.
	Message string
	// Reason is ERROR_REASON_UNSPECIFIED if there is none, or one that this version does not know.
	Reason siemv1.ErrorReason
	// ReasonName is the reason as sent, such as "ETAG_MISMATCH", also if it is unknown. Empty without one.
	ReasonName string
	// Violations has every violated field that the server names, at most 20.
	Violations []Violation
	// RetryDelay is the time after which the server asks to try again; nil if it does not.
	RetryDelay *time.Duration
	// Attempts is the number of attempts that were made.
	Attempts int

	status *status.Status
	cause  error
	// No server can have seen the call.
	unsent bool
}

// Error returns code, reason and message. The message of the server repeats the violations.
func (e *Error) Error() string {
	name := code.Code(e.Code).String()
	if e.ReasonName != "" {
		name += "/" + e.ReasonName
	}
	return "siem: " + name + ": " + e.Message
}

// GRPCStatus returns the status as the server sent it, with all details.
func (e *Error) GRPCStatus() *status.Status {
	if e.status != nil {
		return e.status
	}
	return status.New(e.Code, e.Message)
}

// Unwrap returns the error of the context if that ended the call, or of the token function.
func (e *Error) Unwrap() error { return e.cause }

// fromStatus returns the error that a status describes. Details that cannot be read are ignored.
func fromStatus(failed *status.Status) *Error {
	result := &Error{Code: failed.Code(), Message: failed.Message(), Attempts: 1, status: failed}
	if result.Code > codes.Unauthenticated {
		result.Code = codes.Unknown
	}
	for _, detail := range failed.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() == errorDomain {
				result.ReasonName = detail.GetReason()
				result.Reason = siemv1.ErrorReason(siemv1.ErrorReason_value["ERROR_REASON_"+detail.GetReason()])
			}
		case *errdetails.BadRequest:
			for _, each := range detail.GetFieldViolations() {
				result.Violations = append(result.Violations, Violation{each.GetField(), each.GetDescription()})
			}
		case *errdetails.RetryInfo:
			delay := max(detail.GetRetryDelay().AsDuration(), 0)
			result.RetryDelay = &delay
		}
	}
	return result
}

// fromRPC returns the error of a failed call whose context was ctx.
func fromRPC(ctx context.Context, failure error) *Error {
	result := fromStatus(status.Convert(failure))
	if result.Code == codes.Canceled || result.Code == codes.DeadlineExceeded {
		result.cause = ctx.Err()
	}
	return result
}

func newError(code codes.Code, message string) *Error {
	return &Error{Code: code, Message: message, Attempts: 1}
}

// Messages of gRPC's own transport. A server's handler that fails has other messages.
var transportMessage = regexp.MustCompile(
	`(?i)rst_stream|goaway|socket closed|broken pipe|stream removed|without sending trailers|end of (file|stream)` +
		`|\beof\b|connection|transport|keepalive|ping timeout|http2|\bh2\b`)

// isTransportLoss returns whether the connection failed, rather than the server answered.
func isTransportLoss(failure *Error) bool {
	if failure.ReasonName != "" || failure.cause != nil {
		return false
	}
	switch failure.Code {
	case codes.Unavailable:
		return true
	case codes.Unknown, codes.Canceled, codes.Internal:
		return transportMessage.MatchString(failure.Message)
	default:
		return false
	}
}

// UnacknowledgedError is the error of a publisher with events that have no final answer. The server may have accepted
// them: publish them again, unchanged, and consumers drop the duplicates.
type UnacknowledgedError struct {
	// Problem is the reason for which there is no answer.
	Problem string
	// Unacknowledged has the events in the order of sending.
	Unacknowledged []*siemv1.Event

	cause error
}

// Error returns the problem and the first of the events.
func (e *UnacknowledgedError) Error() string {
	names := make([]string, 0, 6)
	for _, event := range e.Unacknowledged[:min(len(e.Unacknowledged), 5)] {
		id := event.GetEventId()
		if event.EventId == nil {
			id = strings.Trim(protojson.Format(event.GetObservedTime()), `"`)
		}
		names = append(names, fmt.Sprintf("%s/%s/%s", event.GetOrganizationId(), event.GetDeviceId(), id))
	}
	if left := len(e.Unacknowledged) - len(names); left > 0 {
		names = append(names, fmt.Sprintf("and %d more", left))
	}
	return fmt.Sprintf("siem: %s; %d unacknowledged events: %s",
		e.Problem, len(e.Unacknowledged), strings.Join(names, ", "))
}

// Unwrap returns the failure that ended the publisher, or the error of the context.
func (e *UnacknowledgedError) Unwrap() error { return e.cause }
