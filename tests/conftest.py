"""Settings of the whole suite."""

from hypothesis import HealthCheck, settings

# In a fresh clone Hypothesis builds its character tables during the first example, on a slow machine for seconds.
settings.register_profile("whorl", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("whorl")

LONGEST = ("test_trigger_chain.py",)  # begun first, or the other cores wait for it at the end


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)
