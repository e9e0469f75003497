"""What the digest of the settings notices: all that a model follows from, and nothing else."""

from typing import Any

import pytest

from ad_pipeline.settings import WATCHING, Group, Settings


def _changed(name: str) -> dict[str, Any]:
    """Return a group with its first whole number one larger, or its first share halved."""
    group = getattr(Settings(), name)
    written = group.model_dump()
    key = next((k for k, value in written.items() if type(value) is int), None)
    if key is None:
        key = next(k for k, value in written.items() if type(value) is float)
    changed = written[key] / 2 if type(written[key]) is float else written[key] + 1
    return {name: type(group).model_validate(written | {key: changed})}


@pytest.mark.parametrize("name", sorted(WATCHING))
def test_a_threshold_for_people_changes_no_digest_of_a_model(name: str):
    assert Settings().model_copy(update=_changed(name)).digest() == Settings().digest()


LEARNT = [
    name
    for name, value in Settings()
    if isinstance(value, Group)
    and name not in WATCHING
    and any(type(each) is int for each in value.model_dump().values())
]


@pytest.mark.parametrize("name", LEARNT)
def test_a_setting_that_something_is_learnt_by_changes_the_digest(name: str):
    assert Settings().model_copy(update=_changed(name)).digest() != Settings().digest()


def test_every_watching_group_is_a_group_of_the_settings():
    assert Settings.model_fields.keys() >= WATCHING


def test_thresholds_of_labels_enter_the_digest_only_when_models_follow_from_them() -> None:
    told = Settings()
    other = Settings.model_validate({"label_quality": {"jump_factor": 9.0}})
    acted = Settings.model_validate({"label_quality": {"act": True}})
    other_acted = Settings.model_validate({"label_quality": {"act": True, "jump_factor": 9.0}})
    assert told.digest() == other.digest()
    assert len({told.digest(), acted.digest(), other_acted.digest()}) == 3


def test_vectors_of_users_enter_the_digest_only_where_there_are_some() -> None:
    none = Settings.model_validate({"user_vectors": None})
    some = Settings.model_validate({"user_vectors": {}})
    others = Settings.model_validate({"user_vectors": {"averaged": 1}})
    assert none.digest() == Settings().digest()
    assert "user_vectors" in none.model_dump()
    assert len({none.digest(), some.digest(), others.digest()}) == 3


def test_how_many_activities_memory_holds_changes_no_vector_and_no_digest() -> None:
    some = Settings.model_validate({"user_vectors": {}})
    little, few = (
        Settings.model_validate({"user_vectors": {name: 1}})
        for name in ("activities_in_memory", "fewest_activities")
    )
    assert little.digest() == some.digest()
    assert few.digest() != some.digest()


def test_more_activities_than_are_read_of_a_user_cannot_be_asked_for() -> None:
    encoder = {"modalities": [{"name": "a", "longest": 8}, {"name": "b", "longest": 8}]}
    with pytest.raises(ValueError, match="at most 16 are read"):
        Settings.model_validate({"user_vectors": {"encoder": encoder, "fewest_activities": 17}})
    Settings.model_validate({"user_vectors": {"encoder": encoder, "fewest_activities": 16}})
