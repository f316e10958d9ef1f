"""Whatever people type, paste or upload as class names: a usable list or a ValueError, never anything else."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_clipseg.clip.class_files import class_names_of_argument, read_class_file
from hf_clipseg.clip.text_bank import class_prompts, normalise_class_names, parse_class_names, resolve_templates

PARTS = ["a", "B", "sky", "\u00e9", "\u00b2", "7", "0", " ", ",", "|", ";", "\n", "\t", "{}", '"', "#", "\x00", "\u2028"]
WORDS = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)
TEXTS = st.one_of(st.text(max_size=30), WORDS)
NO_NAMES = st.sampled_from([None, 3, 0.5, True, {"a": 1}, ["a"]])
ENTRIES = st.lists(st.one_of(WORDS, NO_NAMES, st.lists(st.one_of(WORDS, NO_NAMES), max_size=3)), max_size=4)
JSON = st.one_of(
    NO_NAMES,
    ENTRIES,
    ENTRIES.map(lambda entries: {"classes": entries}),
    st.dictionaries(
        st.sampled_from(["0", "1", "2", "\u00b2", "x"]), st.one_of(WORDS, NO_NAMES, st.lists(WORDS, max_size=2)), max_size=3
    ),
)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_usable(classes) -> None:
    """What every command relies on: classes with names, names that are text, each once in its class."""
    assert classes and all(isinstance(names, list) and names for names in classes)
    for names in classes:
        assert all(isinstance(name, str) and name.strip() == name != "" for name in names)
        assert len({name.lower() for name in names}) == len(names)
    assert len({names[0].lower() for names in classes}) == len(classes)
    assert normalise_class_names(classes) == classes


@FUZZ
@given(st.lists(st.one_of(TEXTS, NO_NAMES, st.lists(st.one_of(TEXTS, NO_NAMES), max_size=3)), max_size=5))
def test_lists(names):
    try:
        classes = normalise_class_names(names)
    except ValueError:
        return
    assert_usable(classes)
    prompts = class_prompts(names, ["a {}", "{}"])
    assert len(prompts.texts) == 2 * sum(map(len, classes)) == len(prompts.name_ids) and len(prompts.class_names) == len(
        classes
    )


@FUZZ
@given(TEXTS)
def test_what_is_typed(text):
    for read in (parse_class_names, class_names_of_argument):
        try:
            classes = read(text)
        except ValueError:
            continue
        assert_usable(classes)
        assert parse_class_names(", ".join("|".join(names) for names in classes)) == classes


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".json"])
@FUZZ
@given(
    content=st.one_of(st.binary(max_size=40), TEXTS.map(lambda text: text.encode()), JSON.map(lambda v: json.dumps(v).encode()))
)
def test_files(tmp_path, suffix, content):
    path = tmp_path / f"classes{suffix}"
    path.write_bytes(content)
    refused = None
    try:
        assert_usable(read_class_file(path))
    except ValueError as error:
        refused = str(error)
    assert refused is None or str(path) in refused


def test_a_file_that_is_nested_without_end_is_refused(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"deep\.json"):
        read_class_file(tmp_path / "deep.json")


@FUZZ
@given(st.lists(TEXTS, max_size=3))
def test_templates(templates):
    try:
        found = resolve_templates(templates)
    except ValueError:
        return
    assert found and all(template.format("sky").count("sky") >= 1 for template in found)
