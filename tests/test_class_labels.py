from __future__ import annotations

import json
import re

import pytest

import sacvit_deploy
from sacvit_deploy.class_labels import labels, labels_for
from sacvit_deploy.errors import ConfigError

NAMES = ("bow tie", "tabby", "golden retriever")


def test_imagenet():
    found = sacvit_deploy.labels("imagenet-1k")
    assert len(found) == len(set(found)) == 1000
    places = {0: "tench", 1: "goldfish", 207: "golden retriever", 281: "tabby", 457: "bow tie"}
    assert {index: found[index] for index in places} == places
    assert (found[134], found[517], found[967], found[999]) == (
        "crane bird",
        "crane",
        "espresso",
        "toilet tissue",
    )


@pytest.mark.parametrize(
    "text",
    [
        "bow tie\n\ntabby\n golden retriever \n",
        "\ufeffbow tie\r\ntabby\r\ngolden retriever",
        "n00000003 golden retriever\nn00000001\tbow tie\nn00000002 tabby\n",
        json.dumps(NAMES),
        json.dumps([{"wnid": f"n0000000{3 - n}", "name": NAMES[2 - n]} for n in range(3)]),
        json.dumps({"2": NAMES[2], "0": NAMES[0], "1": NAMES[1]}),
        json.dumps({str(n): [f"n0000000{n}", name] for n, name in enumerate(NAMES)}),
        json.dumps({f"n0000000{n}": NAMES[n] for n in (1, 0, 2)}),
        json.dumps({"tie": "bow tie", "cat": "tabby", "dog": "golden retriever"}),
    ],
)
def test_every_form(tmp_path, text):
    (tmp_path / "names").write_text(text, encoding="utf-8")
    assert labels(tmp_path / "names") == NAMES


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("crane\ntabby\ncrane\n", r"'crane' for the classes 1, 3, counted from 1"),
        ("", "names no class"),
        ('{"0": "a", "2": "b"}', "do not count the classes from 0"),
        ('{"a": 3}', "3 is not the name"),
        ('[{"name": "a"}]', "neither id nor wnid"),
        ("[", "is not valid JSON"),
        ("n00000001 a\nn00000001 b\n", "one id more than once"),
    ],
)
def test_files_that_do_not_name_classes(tmp_path, text, says):
    (tmp_path / "names").write_text(text)
    with pytest.raises(ConfigError, match=says):
        labels(tmp_path / "names")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="imagenet-2k cannot be read: No such file") as refused:
        labels("imagenet-2k")
    assert "imagenet-1k" in refused.value.fix


@pytest.mark.parametrize("given", [["cat", "dog"], ("cat", "dog")])
def test_names_may_be_given_themselves(given):
    assert labels_for(given, 2) == ("cat", "dog")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["cat", "cat"], "The list of labels has 1 name more than once, such as 'cat'"),
        (("cat",), "The tuple of labels names 1 class, the network has 2"),
        ([], "The list of labels names 0 classes"),
        (["cat", 3], r"Labels were asked for and \['cat', 3\] found"),
        (["cat", ""], "Labels were asked for"),
        (3, "Labels were asked for and 3 found"),
    ],
)
def test_what_are_no_names(given, says):
    with pytest.raises(ConfigError, match=says):
        labels_for(given, 2)


def test_the_number_of_classes_counts():
    with pytest.raises(ConfigError, match="names 1000 classes, the network has 50"):
        labels_for("imagenet-1k", 50)


def test_every_line_of_the_list_is_an_id_and_a_name():
    path = sacvit_deploy.__path__[0] + "/assets/imagenet-1k.txt"
    with open(path, encoding="utf-8") as file:
        lines = file.read().splitlines()
    assert all(re.fullmatch(r"n\d{8} \S.*", line) for line in lines)
    assert lines == sorted(lines)
