"""Properties run without a clock (the machine may be busy) and leave no database in the checkout; a failure prints how to replay it."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "shard", deadline=None, database=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shard")
