"""The faults that are injected, and which tests prove what must hold under each.

`make trust` runs these tests in their long forms and counts by these rows. A test is named by its node id without its cases; a class or a module
stands for all in it. Each asserts that its fault fired: a kill by the status of the killed process, damage by the error that it makes, a call that
fails by the wrapper's or the proxy's own count.

The promises:

- P1 an acknowledged file is readable, byte-exact, or the answer is an error
- P2 "not found" only on proof; trouble is never a 404
- P3 a crash leaves the old state or the new one, and leftovers can be found
- P4 two packers never lose or mix each other's files
- P5 memory, sockets, descriptors and time are bounded
- P6 a bad zone costs latency, not correctness
- P7 `des verify` finds all damage, and no repair makes it worse
- P8 what a released version wrote stays readable
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A fault.

    Attributes:
        promise: those it is aimed at.
        fault: what is done.
        tests: node ids, relative to the root of the tree.
    """

    promise: str
    fault: str
    tests: tuple[str, ...]


def _in(module: str, *names: str) -> tuple[str, ...]:
    return tuple(f"tests/{module}.py::{name}" for name in names) or (f"tests/{module}.py",)


ROWS = (
    Row(
        "P1 P2",
        "every byte of a small shard flipped or cut",
        (
            *_in("http/test_damage"),
            *_in("shard/test_damage"),
            *_in("store/test_store_damage", "TestDamage"),
        ),
    ),
    Row(
        "P2 P3 P7",
        "head lost, or another shard's in its place",
        (
            *_in("lifecycle/test_commands", "TestGc::test_a_lost_head", "TestRepair::test_a_lost_head_comes_back"),
            *_in("lifecycle/test_interleavings", "test_while_a_lost_head_is_repaired"),
            *_in("lifecycle/test_repairing"),
            *_in("lifecycle/test_collecting", "test_a_shard_without_a_good_head_is_not_touched"),
            *_in("pack/test_commit", "TestOpening::test_a_lost_head_is_named_and_nothing_written"),
        ),
    ),
    Row(
        "P7",
        "damage anywhere, looked for by `des verify`",
        _in("store/test_verifying"),
    ),
    Row(
        "P3 P4",
        "writer stopped while gc or compaction runs",
        _in("lifecycle/test_stopped"),
    ),
    Row(
        "P1",
        "reader with a stale head while segments go",
        (
            *_in("store/test_store_staleness"),
            *_in("lifecycle/test_interleavings", "test_a_reader_with_a_stale_head"),
        ),
    ),
    Row(
        "P5",
        "hostile container",
        (
            *_in("fuzz/test_fuzz"),
            *_in("shard/test_hostile"),
            *_in("shard/test_tables", "test_any_bytes_decode_or_are_corrupt", "test_any_change_decodes_or_is_corrupt"),
            *_in(
                "shard/test_catalog",
                "test_any_rows_decode_or_are_corrupt",
                "test_any_change_of_a_row_decodes_or_is_corrupt",
            ),
        ),
    ),
    Row(
        "P3",
        "kill -9 at every storage call",
        (
            *_in("test_kill", "test_killed_at_every_storage_call"),
            *_in("pack/test_state", "test_killed_at_seeded_points_and_resumed"),
            *_in("pack/test_state", "test_killed_at_seeded_points_and_resumed_on_s3"),
            *_in("lifecycle/test_kill"),
            *_in(
                "s3/test_kill",
                "test_killed_at_every_storage_call",
                "test_killed_at_every_storage_call_of_a_small_pack",
            ),
        ),
    ),
    Row(
        "P1 P3",
        "torn write, missing sync, lost rename",
        (
            *_in("storage/test_local_durability", "TestDurability"),
            *_in("pack/test_torn"),
        ),
    ),
    Row(
        "P3 P5",
        "ENOSPC, EIO, EROFS at every call",
        (
            *_in(
                "storage/test_local_durability",
                "TestDurability::test_put_that_fails_at_any_call",
                "TestDurability::test_writer_that_fails_at_any_call",
            ),
            *_in("http/test_disk_trouble"),
            *_in("pack/test_run", "TestTrouble"),
            *_in("pack/test_state", "test_a_disk_that_is_full"),
        ),
    ),
    Row(
        "P4",
        "several packers on one shard, interleaved",
        (
            *_in("pack/test_interleavings", "test_two_packers"),
            *_in("test_kill", "TestAtOnce"),
            *_in("s3/test_kill", "TestAtOnce"),
        ),
    ),
    Row(
        "P3 P4",
        "everything that changes a shard, interleaved",
        _in("lifecycle/test_interleavings", "test_two_at_a_time", "test_what_is_erased_stays_so"),
    ),
    Row(
        "P1 P3 P7",
        "any history, against a dict",
        (
            *_in("lifecycle/test_histories"),
            *_in("pack/test_model"),
        ),
    ),
    Row(
        "P4",
        "lost reply on commit",
        (
            *_in("s3/test_lost_replies"),
            *_in("pack/test_interleavings", "test_two_packers_and_a_lost_reply"),
            *_in(
                "pack/test_commit",
                "TestSwap::test_any_failure_means_unknown",
                "TestSwap::test_several_lost_replies_among_other_commits",
            ),
        ),
    ),
    Row(
        "P4",
        "store that ignores, 304s, 409s or 501s conditions",
        (
            *_in("storage/test_s3_probe"),
            *_in("s3/test_commands", "test_a_store_that_ignores_conditions_is_refused_for_sharing"),
        ),
    ),
    Row(
        "P1 P5",
        "reset, short body, stall, drip; wrong range or ETag",
        (
            *_in("s3/test_faults"),
            *_in("storage/test_s3_faults"),
            *_in("storage/test_s3_ranges"),
        ),
    ),
    Row(
        "P1 P2 P6",
        "one or two of several places slow, down, overloaded, behind or damaged",
        (
            *_in("store/test_places"),
            *_in("pack/test_several_places"),
            *_in("lifecycle/test_several_places"),
            *_in("storage/test_zone_heads"),
            *_in("storage/test_zone_copying"),
            *_in("storage/test_zones_in_trouble"),
            *_in("zones/test_faults"),
            *_in("zones/test_writing"),
        ),
    ),
    Row(
        "P2 P5",
        "503 SlowDown storm, every second request",
        (
            *_in("s3/test_storm"),
            *_in("storage/test_s3_faults", "test_a_storm_of_503_costs_no_more_than_the_budget_and_passes"),
        ),
    ),
    Row(
        "P5",
        "cold stampede, leader cancelled",
        (
            *_in("store/test_costs", "TestManyAtOnce"),
            *_in("store/test_cache", "TestSingleFlight"),
            *_in("s3/test_costs"),
        ),
    ),
    Row(
        "P5",
        "cancelled at each await",
        (
            *_in("store/test_cancellation"),
            *_in("pack/test_run", "test_cancelled_at_any_call"),
            *_in("pack/test_sources", "test_a_large_source_is_closed_wherever_its_reader_is_cancelled"),
            *_in("storage/test_s3_faults", "test_cancelled_at_every_await"),
            *_in("storage/test_s3_faults", "test_a_cancelled_read_leaves_nothing_behind"),
            *_in("storage/test_local_durability", "TestCancellation"),
        ),
    ),
    Row(
        "P5",
        "client stalls, vanishes, drips; HTTP/2",
        (
            *_in("http/test_endurance"),
            *_in("http/test_exchange"),
            *_in("s3/test_service_soak"),
        ),
    ),
    Row(
        "P5",
        "SIGTERM under load",
        _in(
            "http/test_serving",
            "test_no_request_is_lost_when_it_ends_under_load",
            "test_a_download_is_finished_while_nobody_new_is_let_in",
            "test_what_does_not_end_in_time_is_cut",
        ),
    ),
    Row(
        "P2 P5",
        "credentials rotated or expired, clock skewed",
        (
            *_in("s3/test_credentials"),
            *_in("storage/test_s3_presigned"),
            *_in("storage/test_s3_errors", "test_refusals"),
        ),
    ),
    Row(
        "P8",
        "files of every released version",
        _in("shard/test_golden"),
    ),
)
