"""The publisher's state, against a model of a server that rejects, refuses and disconnects at random."""

from __future__ import annotations

import random
from concurrent.futures import Future

import grpc
import pytest
from conftest import event

from siem_client import Outcome, PublisherOptions, SiemError, v1
from siem_client._publish_core import MAX_BYTES, Broken, Item, PublishCore, Results


class Model:
    """A server and a driver, with a clock of their own."""

    def __init__(self, seed: int, devices: int, options: PublisherOptions) -> None:
        self.random = random.Random(seed)
        self.core = PublishCore(options, lambda failures: 0.1 * 2.0 ** min(failures, 5))
        self.devices = devices
        self.now = 0.0
        self.unanswered: list[v1.PublishStreamRequest] = []
        self.accepted: list[str] = []
        self.results: dict[str, Outcome] = {}
        self.max_in_flight = 0

    def take(self, results: Results) -> None:
        for item, result in results:
            ident = item.event().event_id
            assert ident not in self.results, "one answer to each event"
            self.results[ident] = result.outcome

    def answer(self) -> None:
        request = self.unanswered.pop(0)
        answer = v1.PublishStreamResponse(request_id=request.request_id)
        poisoned = any(each.ids_detection.signature == "detection 13" for each in request.events)
        if poisoned and self.devices == 3:
            answer.error.code = grpc.StatusCode.INVALID_ARGUMENT.value[0]
        else:
            answer.result.SetInParent()
            # A device whose first event is rejected keeps its order only if the later ones are rejected too.
            full = {each.device_id for each in request.events if self.random.random() < 0.1}
            for index, each in enumerate(request.events):
                if each.device_id in full:
                    reason = self.random.choice([v1.ERROR_REASON_OVERLOADED, v1.ERROR_REASON_RATE_LIMITED])
                    answer.result.rejections.add(index=index, reason=reason)
                elif each.ids_detection.signature.endswith("7"):
                    answer.result.rejections.add(index=index, reason=v1.ERROR_REASON_INVALID_FIELD)
                else:
                    self.accepted.append(each.event_id)
        try:
            self.take(self.core.answered(answer, self.now))
        except Broken as broken:
            self.reopen(broken.error)

    def reopen(self, error: SiemError) -> None:
        self.unanswered.clear()
        results, wait = self.core.broke(error, self.now, False)
        self.take(results)
        self.now += wait or 0.0

    def step(self) -> None:
        chance = self.random.random()
        if chance < 0.05:
            # The answers are lost, although the events were accepted.
            for request in self.unanswered:
                self.accepted += [each.event_id for each in request.events]
            self.reopen(SiemError(grpc.StatusCode.UNAVAILABLE, "planned"))
        elif chance < 0.5 and self.unanswered:
            self.answer()
        else:
            encoded = self.core.next_request(self.now)
            if encoded is not None:
                self.unanswered.append(v1.PublishStreamRequest.FromString(encoded))
                self.max_in_flight = max(self.max_in_flight, len(self.unanswered))
            else:
                self.now += 0.05


@pytest.mark.parametrize("seed", range(150))
def test_every_event_gets_one_answer_and_devices_keep_their_order(seed: int) -> None:
    single = seed % 2 == 0
    # With one request in flight no later event of a device can overtake a rejected one.
    options = PublisherOptions(
        max_requests_in_flight=1 if single else 4, max_batch_events=4, give_up_after=None, linger=0.01
    )
    model = Model(seed, seed % 3 + 1, options)
    total = 60
    for number in range(total):
        item = Item(event(number, f"device{number % model.devices}"), Future())
        model.core.add(item, model.now)
        for _ in range(model.random.randrange(4)):
            model.step()
    model.core.flush()
    for _ in range(20_000):
        if model.core.is_done:
            break
        model.step()
    assert model.core.is_done and len(model.results) == total
    assert model.core.bytes == 0 and model.core.stats.pending == 0 and not model.core.unanswered()
    assert model.max_in_flight <= options.max_requests_in_flight
    first_accepted = list(dict.fromkeys(model.accepted))
    for device in {name.partition("-")[0] for name in first_accepted}:
        numbers = [int(name.partition("-")[2]) for name in first_accepted if name.startswith(f"{device}-")]
        if single and model.devices != 3:
            assert numbers == sorted(numbers), device
    for name, outcome in model.results.items():
        number = int(name.partition("-")[2])
        final = number % 10 == 7 or (number == 13 and model.devices == 3)
        if final and name not in model.accepted:
            assert outcome is Outcome.REJECTED, name
        elif not final:
            assert outcome is Outcome.ACCEPTED, name


def requests_of(core: PublishCore) -> list[bytes]:
    requests = []
    while (request := core.next_request(1e9)) is not None:
        requests.append(request)
    return requests


def test_requests_stay_below_the_limits_with_their_framing() -> None:
    core = PublishCore(PublisherOptions(max_requests_in_flight=64))
    for number in range(9):
        core.add(Item(event(number, size=(1 << 20) - 80), Future()), 0.0)
    for number in range(2_500):
        core.add(Item(event(number), Future()), 0.0)
    core.flush()
    requests = requests_of(core)
    assert max(len(request) for request in requests) <= MAX_BYTES
    counts = [len(v1.PublishStreamRequest.FromString(request).events) for request in requests]
    assert sum(counts) == 2_509 and max(counts) == 1_000
    # As few requests as the limits allow, but for the last of each kind.
    assert len(requests) <= 6, counts


def test_requests_carry_one_organization_while_there_are_few() -> None:
    core = PublishCore(PublisherOptions(max_requests_in_flight=64))
    for number in range(40):
        core.add(Item(event(number, organization=f"org{number % 8}"), Future()), 0.0)
    assert len(requests_of(core)) == 8
    core = PublishCore(PublisherOptions(max_requests_in_flight=64))
    for number in range(40):
        core.add(Item(event(number, organization=f"org{number % 9}"), Future()), 0.0)
    assert len(requests_of(core)) == 1


def test_outcomes_of_unconfigured_organizations() -> None:
    for organizations, unconfigured, outcome in (
        (1, 0, Outcome.ACCEPTED),
        (1, 9, Outcome.UNCONFIGURED),
        (9, 4, Outcome.UNDETERMINED),
    ):
        core = PublishCore(PublisherOptions())
        for number in range(9):
            core.add(Item(event(number, organization=f"org{number % organizations}"), Future()), 0.0)
        requests_of(core)
        answer = v1.PublishStreamResponse(request_id="1")
        answer.result.accepted, answer.result.unconfigured = 9 - unconfigured, unconfigured
        assert {result.outcome for _, result in core.answered(answer, 0.0)} == {outcome}


def test_it_gives_up_after_a_time_without_progress() -> None:
    core = PublishCore(PublisherOptions(give_up_after=10))
    core.add(Item(event(1), Future()), 0.0)
    now = 0.0
    waits = []
    with pytest.raises(SiemError, match="gave up after 10 s"):
        while True:
            wait = core.broke(SiemError(grpc.StatusCode.UNAVAILABLE, "planned"), now, False)[1]
            assert wait is not None
            waits.append(wait)
            now += wait
    assert all(0 < wait <= 5.0 for wait in waits) and abs(now - 10) < 1e-6


def test_it_never_sends_earlier_than_the_server_asks() -> None:
    core = PublishCore(PublisherOptions(max_retry_wait=1.0))
    core.add(Item(event(1), Future()), 0.0)
    error = SiemError(grpc.StatusCode.RESOURCE_EXHAUSTED, "planned", retry_delay=30.0)
    wait = core.broke(error, 0.0, False)[1]
    assert wait is not None and 30.0 <= wait <= 37.5


def test_the_second_half_of_a_split_request_waits_for_the_first() -> None:
    core = PublishCore(PublisherOptions(), lambda failures: 1.0)
    for number in (1, 2):
        core.add(Item(event(number), Future()), 0.0)
    core.flush()

    def sent(now: float) -> v1.PublishStreamRequest:
        encoded = core.next_request(now)
        assert encoded is not None
        return v1.PublishStreamRequest.FromString(encoded)

    def overloaded(request: v1.PublishStreamRequest, now: float) -> None:
        answer = v1.PublishStreamResponse(request_id=request.request_id)
        for index in range(len(request.events)):
            answer.result.rejections.add(index=index, reason=v1.ERROR_REASON_OVERLOADED)
        assert not core.answered(answer, now)

    overloaded(sent(0.0), 0.0)
    refusal = v1.PublishStreamResponse(request_id=sent(1.0).request_id)
    refusal.error.code = grpc.StatusCode.INVALID_ARGUMENT.value[0]
    with pytest.raises(Broken) as broken:
        core.answered(refusal, 1.0)
    core.broke(broken.value.error, 1.0, False)
    half = sent(1.0)
    assert [each.event_id for each in half.events] == [event(1).event_id]
    overloaded(half, 1.0)
    assert core.next_request(1.0) is None, "event 2 would overtake event 1"
    assert sent(2.0).events[0].event_id == event(1).event_id
