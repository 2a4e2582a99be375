//go:build go1.23

package siem

import (
	"testing"

	"google.golang.org/grpc/codes"

	siemv1 "github.com/siem-relay/siem-relay/clients/go/siem/v1"
)

func TestTheEventsOfARangeStatement(t *testing.T) {
	server := &fake{status: func(request *siemv1.StreamStatusRequest, stream siemv1.SiemIntegrationService_StreamStatusServer) error {
		if request.GetResumeToken() == "2" {
			return planned(codes.PermissionDenied, "", 0)
		}
		for _, message := range []*siemv1.StreamStatusResponse{synced("1"), current("2", "acme")} {
			if err := stream.Send(message); err != nil {
				return err
			}
		}
		return nil
	}}
	server.serve(t)
	client := connected(t, server.address)
	for wanted, closeAfter := range map[int]int{1: 1, 3: 0} {
		watch, err := client.WatchStatus(limited(t), WatchOptions{})
		must(t, err)
		count, failures := 0, 0
		for _, err := range watch.All() {
			if count++; err != nil {
				failures++
			}
			if count == closeAfter {
				watch.Close()
			}
		}
		equal(t, "elements", count, wanted)
		equal(t, "errors", failures, wanted/3)
	}
}
