"""The CloudEvent data expected for a Suricata EVE line, derived independently of the server, and sample lines.

The samples have what captures of a single network lack: IPv6, ICMP with types and without ports, VLANs,
Unicode, every form of time offset, numbers of any length.
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from typing import Any

Json = dict[str, Any]

# Members of an EVE record that become members of `data`.
TOP = [
    "src_ip", "src_port", "dest_ip", "dest_port", "proto", "app_proto", "flow_id", "community_id", "vlan", "in_iface",
    "direction",
]  # fmt: skip
# Members whose empty text is a value; elsewhere it means that the member is absent.
MAY_BE_EMPTY = {"signature", "category"}
# Members of `alert` that become members of `data`.
ALERT = ["action", "gid", "signature_id", "rev", "signature", "category", "severity"]


def parse(text: str) -> Any:
    """Parses JSON; fractions keep their digits, so that they are compared to the last one."""
    return json.loads(text, parse_float=lambda digits: ("number", digits))


def expected_data(line: str) -> Json:
    """Returns the `data` of the CloudEvent for an alert line."""
    eve = parse(line)
    alert = dict(eve["alert"])
    rest = {key: value for key, value in eve.items() if key not in ("timestamp", "event_type", "alert")}
    data: Json = {"type": "TYPE_DETECTION"}
    for source, names in ((rest, TOP), (alert, ALERT)):
        for name in names:
            value = source.get(name)
            if value not in (None, "", []) or (value == "" and name in MAY_BE_EMPTY):
                data[name] = source.pop(name)
    if "vlan" in data and not isinstance(data["vlan"], list):
        data["vlan"] = [data["vlan"]]
    if alert.get("metadata"):
        data["metadata"] = {
            key: [str(value) for value in (values if isinstance(values, list) else [values])]
            for key, values in alert.pop("metadata").items()
        }
    if alert:
        rest["alert"] = alert
    if rest:
        data["context"] = rest
    return data


def instant(text: str) -> tuple[int, int]:
    """Returns seconds since 1970 and nanoseconds of a time; without an offset it is UTC."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?", text)
    assert match, text
    day, time, fraction, offset = match.groups()
    moment = datetime.strptime(f"{day}T{time}{offset or 'Z'}", "%Y-%m-%dT%H:%M:%S%z")
    epoch = datetime(1970, 1, 1, tzinfo=timezone.utc)
    return (moment - epoch) // (datetime.resolution * 1_000_000), int((fraction or "").ljust(9, "0"))


def alert(number: int, **changes: Any) -> Json:
    """Returns an alert record; a change to None removes the key."""
    record: Json = {
        "timestamp": f"2026-02-03T04:{number // 60 % 60:02}:{number % 60:02}.{number % 1_000_000:06}+0000",
        "flow_id": 1_000_000_000_000_000 + number,
        "in_iface": "eth0",
        "event_type": "alert",
        "src_ip": "192.0.2.10",
        "src_port": 40000 + number % 1000,
        "dest_ip": "198.51.100.20",
        "dest_port": 80,
        "proto": "TCP",
        "alert": {
            "action": "allowed",
            "gid": 1,
            "signature_id": 1000000 + number,
            "rev": 2,
            "signature": "EXAMPLE Request to example.com",
            "category": "Misc activity",
            "severity": 3,
        },
    }
    return {key: value for key, value in {**record, **changes}.items() if value is not None}


def samples() -> list[str]:
    """Returns EVE alerts of many shapes as JSON texts; two of them are equal."""
    rule = alert(0)["alert"]
    records: list[Json | str] = [
        alert(1),
        alert(2, src_ip="2001:db8::10", dest_ip="2001:db8:0:1::20", dest_port=443, app_proto="tls",
              tls={"sni": "www.example.com", "version": "TLS 1.3"}),
        alert(3, proto="ICMP", src_port=None, dest_port=None, icmp_type=8, icmp_code=0),
        alert(4, proto="IPv6-ICMP", src_ip="2001:db8::1", dest_ip="2001:db8::2", src_port=None, dest_port=None,
              icmp_type=128, icmp_code=0),
        alert(5, proto="ICMP", src_port=0, dest_port=0),
        alert(6, alert={**rule, "signature": "EXAMPLE Prüfung ✓ 検出 \U0001f6f0 \"quoted\" \\ \u0001", "category": "Überwachung"}),
        alert(7, vlan=[100, 4095], community_id="1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
        alert(8, vlan=7),
        alert(9, flow_id=18446744073709551615, direction="to_server", tx_id=0),
        alert(10, alert={**rule, "action": "blocked", "severity": 1, "metadata": {
            "affected_product": ["Any"], "attack_target": ["Client_Endpoint", "Server"], "signature_severity": ["Major"]}}),
        alert(11, alert={**rule, "source": {"ip": "192.0.2.10", "port": 1}, "target": {"ip": "198.51.100.20", "port": 2}}),
        alert(12, app_proto="http", http={"hostname": "www.example.com", "url": "/?q=%C3%A9", "status": 200, "length": 0}),
        alert(13, app_proto="dns", dns={"query": [{"type": "query", "rrname": "example.com", "rrtype": "AAAA"}]}),
        alert(14, payload="AAECAwQFBgcICQ==", packet="/////w==", stream=1, packet_info={"linktype": 1}),
        alert(15, timestamp="2026-02-03T04:00:15.123456-0600"),
        alert(16, timestamp="2026-02-03T04:00:16.5+05:30"),
        alert(17, timestamp="2026-02-03T04:00:17Z"),
        alert(18, timestamp="2026-02-03T04:00:18.000001"),
        # Numbers that JSON libraries usually round.
        json.dumps(alert(19))[:-1] + ', "numbers": {"a": 1.10, "b": 1e400, "c": 12345678901234567890123, "d": -0.0}}',
        json.dumps(alert(20, http={"url": "/" + "x" * 9000})),
        alert(21, alert={**rule, "signature": "", "category": ""}),
        alert(22, flow={"pkts_toserver": 4, "start": "2026-02-03T04:00:00.000000+0000"}, empty={}, nothing=[]),
        alert(1),
    ]  # fmt: skip
    return [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
