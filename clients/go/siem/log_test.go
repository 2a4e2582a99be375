package siem

import (
	"context"
	"log/slog"
)

// signal is a log handler that calls a function for each record.
type signal struct {
	discard
	call func()
}

func (signal) Enabled(context.Context, slog.Level) bool { return true }

func (s signal) Handle(context.Context, slog.Record) error {
	s.call()
	return nil
}

func loggerOf(call func()) *slog.Logger { return slog.New(signal{call: call}) }
