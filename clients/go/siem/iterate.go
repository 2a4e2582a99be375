//go:build go1.23

package siem

import (
	"errors"
	"iter"
)

// All returns the events of the watch, for a range statement, which ends after Close. An error is the last element.
func (w *StatusWatch) All() iter.Seq2[StatusEvent, error] {
	return func(yield func(StatusEvent, error) bool) {
		for {
			event, err := w.Recv()
			if errors.Is(err, ErrClosed) || !yield(event, err) || err != nil {
				return
			}
		}
	}
}
