from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sacvit_deploy.class_labels import labels
from sacvit_deploy.errors import DataError
from sacvit_deploy.evaluation.class_names import match_classes, read_class_names

LABELS = ("tabby", "African elephant", "crane", "crane")


def test_by_name_whatever_the_case_the_underscores_and_the_order():
    assert match_classes(["african_Elephant", "Tabby"], LABELS) == {
        "african_Elephant": 1,
        "Tabby": 0,
    }


def test_by_class_names_where_the_data_has_ids():
    names = {"n01": "African elephant", "n02": "tabby", "n03": "not used"}
    assert match_classes(["n01", "n02"], LABELS, names) == {"n01": 1, "n02": 0}
    assert match_classes(["tabby"], LABELS, names) == {"tabby": 0}


def test_the_list_of_the_package_names_the_folders_of_imagenet():
    names = read_class_names(Path("imagenet-1k"))
    assert len(names) == 1000
    network = labels("imagenet-1k")
    assert match_classes(["n01443537", "n01440764"], network, names) == {
        "n01443537": 1,
        "n01440764": 0,
    }


@pytest.mark.parametrize(
    ("classes", "names", "said"),
    [
        (["0", "1"], None, r"2 of the 2 classes .* '0', '1'\..*'tabby'.*\n.*--class-names"),
        (["tabby", "dog"], None, r"1 of the 2 classes .* 'dog'\."),
        (["n09"], {"n01": "tabby"}, r"'n09'.*\n.*'n01'"),
        (["crane"], None, r"'crane' could be each of the labels \[2, 3\]"),
        (["tabby", "Tabby"], None, "both the label 'tabby'"),
    ],
)
def test_what_does_not_match_is_one_error(classes, names, said):
    with pytest.raises(DataError, match=said):
        match_classes(classes, LABELS, names)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"n01": "bow tie", "n02": "tabby"}),
        json.dumps([{"wnid": "n01", "name": "bow tie"}, {"id": "n02", "name": "tabby"}]),
        "n01 bow tie\n\nn02\ttabby\n",
    ],
    ids=["object", "list", "text"],
)
def test_the_forms_of_class_names(text, tmp_path):
    (tmp_path / "names").write_text(text)
    assert read_class_names(tmp_path / "names") == {"n01": "bow tie", "n02": "tabby"}


def test_ids_may_be_numbers(tmp_path):
    (tmp_path / "names").write_text('{"7": "tabby", "3": "bow tie"}')
    assert read_class_names(tmp_path / "names") == {"7": "tabby", "3": "bow tie"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no class"),
        ("{", "names is not valid JSON"),
        ('{"n01": "' + "\\ud800" + '"}', "half a surrogate pair"),
        ("[" * 100_000, "names is not valid JSON"),
        ('[{"id": "n01", "name": 1e999}]', "a number is too large"),
        ('{"n01": 3}', "3 is not the name"),
        ('[{"name": "tabby"}]', "neither id nor wnid"),
        ('["tabby"]', "does not give names"),
        ("n01\n", "line 1 is one word, 'n01'"),
        ("n01 tabby\nn01 lion\n", "'n01' more than one name"),
    ],
)
def test_other_files_are_refused(text, said, tmp_path):
    (tmp_path / "names").write_text(text)
    with pytest.raises(DataError, match=said):
        read_class_names(tmp_path / "names")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "names")
    with pytest.raises(DataError, match="not a regular file"):
        read_class_names(tmp_path / "names")


def test_a_file_without_end_is_refused_by_its_size(tmp_path):
    with (tmp_path / "names").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(DataError, match="at most 33554432 are read"):
        read_class_names(tmp_path / "names")


def test_no_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_class_names(tmp_path / "none")
