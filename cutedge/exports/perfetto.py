"""Timelines as a trace that ui.perfetto.dev opens: a process each, one below the other."""

from collections.abc import Iterator, Sequence
from itertools import count

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import (
    CounterDescriptor,
    Trace,
    TracePacket,
    TrackDescriptor,
    TrackEvent,
)

from cutedge.exports.timeline import Slice, Timeline

NANOSECONDS = 1_000_000_000


def trace_of(timelines: Sequence[Timeline], about: str) -> bytes:
    """The trace, in Perfetto's protobuf. ``about`` is said of every process."""
    trace = Trace()
    ids, flows = count(1), 0
    for number, timeline in enumerate(timelines, start=1):
        process = TrackDescriptor(
            uuid=next(ids), child_ordering=TrackDescriptor.ChildTracksOrdering.EXPLICIT
        )
        process.process.pid = number
        process.process.process_name = f"{timeline.title}: {about}"
        trace.packet.append(_described(process))
        tracks = {name: next(ids) for name in timeline.tracks}
        counters = {level.device: next(ids) for level in timeline.levels}
        for rank, (name, track) in enumerate(tracks.items()):
            trace.packet.append(
                _described(
                    TrackDescriptor(
                        uuid=track, parent_uuid=process.uuid, name=name, sibling_order_rank=rank
                    )
                )
            )
        for rank, (device, track) in enumerate(counters.items(), start=len(tracks)):
            trace.packet.append(
                _described(
                    TrackDescriptor(
                        uuid=track,
                        parent_uuid=process.uuid,
                        name=f"bytes on {device}",
                        sibling_order_rank=rank,
                        counter=CounterDescriptor(unit=CounterDescriptor.Unit.UNIT_SIZE_BYTES),
                    )
                )
            )
        events = [
            (time, event)
            for one in timeline.slices
            for time, event in _events(one, tracks[one.track], flows)
        ]
        events += [
            (
                _nanoseconds(level.start),
                TrackEvent(
                    type=TrackEvent.Type.TYPE_COUNTER,
                    track_uuid=counters[level.device],
                    counter_value=level.bytes,
                ),
            )
            for level in timeline.levels
        ]
        for time, event in sorted(events, key=lambda timed: timed[0]):  # stable: as executed
            trace.packet.append(
                TracePacket(timestamp=time, trusted_packet_sequence_id=number, track_event=event)
            )
        flows += max((flow for one in timeline.slices for flow in one.flows_out), default=0)
    data: bytes = trace.SerializeToString(deterministic=True)
    return data


def _nanoseconds(seconds: float) -> int:
    return round(seconds * NANOSECONDS)


def _described(track: TrackDescriptor) -> TracePacket:
    return TracePacket(trusted_packet_sequence_id=1, track_descriptor=track)


def _events(one: Slice, track: int, flows: int) -> Iterator[tuple[int, TrackEvent]]:
    """The two events of a slice, with their time; ``flows`` were numbered before."""
    begin = TrackEvent(
        type=TrackEvent.Type.TYPE_SLICE_BEGIN,
        track_uuid=track,
        name=one.name,
        categories=[one.category],
        flow_ids=[flows + flow for flow in one.flows_out],
        terminating_flow_ids=[flows + flow for flow in one.flows_in],
    )
    for key, value in one.arguments.items():
        said = begin.debug_annotations.add(name=key)
        match value:
            case int():
                said.int_value = value
            case float():
                said.double_value = value
            case str():
                said.string_value = value
    yield _nanoseconds(one.start), begin
    yield (
        _nanoseconds(one.start + one.seconds),
        TrackEvent(type=TrackEvent.Type.TYPE_SLICE_END, track_uuid=track),
    )
