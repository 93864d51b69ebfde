from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sacvit_deploy.comparison.network import Network, of_bundle, reference_for
from sacvit_deploy.errors import BundleError, CheckpointError, ConfigError
from sacvit_deploy.model.checkpoints import save_checkpoint
from sacvit_deploy.runtime.preprocess import Preprocessor
from sacvit_deploy.spec import Preprocessing
from tests.fakes import SAC, fake_sessions, random_pictures
from tests.tiny_models import OTHER_CHOICES, strong_model

PREPROCESS = Preprocessor(Preprocessing(SAC.image_size, crop_ratio=1.0))
PICTURES = random_pictures(20)


@pytest.mark.parametrize(("largest", "sizes"), [(None, [16, 4]), (8, [8, 8, 4]), (64, [16, 4])])
@pytest.mark.parametrize("selection", ["host", "graph"])
def test_pictures_go_in_batches_that_every_session_takes(largest, sizes, selection):
    sessions = fake_sessions(SAC, selection)
    network = Network("fake", SAC, PREPROCESS, dict(sessions), selection, largest)
    found = network.decisions(PICTURES)
    assert [len(call["image"]) for call in sessions["early_exit"].calls] == sizes
    (alone,) = network.decisions(PICTURES[17:18]).refined_logits
    np.testing.assert_array_equal(found.refined_logits[17], alone)


@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_the_graphs_get_what_the_preprocessor_makes(kind):
    preprocess = dataclasses.replace(PREPROCESS, input_kind=kind)
    network = Network("fake", SAC, preprocess, dict(fake_sessions(SAC)))
    pixels = network.pixels(PICTURES[:3])
    assert pixels.dtype == np.uint8
    wanted = np.stack([preprocess(picture) for picture in PICTURES[:3]])
    np.testing.assert_array_equal(network.images(pixels), wanted)


def reference(bundle, against, candidate=None):
    return reference_for(bundle, against, candidate or of_bundle(bundle))


def test_what_against_may_be(sac_host, sac_graph, sac_checkpoint, dense_bundle):
    def named(bundle, against):
        found = reference(bundle, against)
        return found.precision, found.backend, found.name

    torch = ("fp32", "torch", f"{sac_checkpoint} (torch)")
    assert named(sac_host, str(sac_checkpoint)) == torch
    other = ("fp32", "onnxruntime", f"{sac_graph.path} (fp32 in onnxruntime)")
    for against in (sac_graph.path, f"{sac_graph.path}:fp32", f"{sac_graph.path}:fp32@onnxruntime"):
        assert named(sac_host, str(against)) == other
    for against in (None, "torch"):
        assert named(dense_bundle, against)[1:] == ("torch", "random weights (torch)")


def test_without_the_checkpoint_it_says_which_to_name(sac_host):
    for against in (None, "torch"):
        with pytest.raises(CheckpointError, match=r"sac\.safetensors.*\n.*--against CHECKPOINT"):
            reference(sac_host, against)


def test_what_is_not_there(sac_host, tmp_path):
    with pytest.raises(ConfigError, match=r"none\.pth: there is no file.*\n.*OTHER:PRECISION"):
        reference(sac_host, str(tmp_path / "none.pth"))
    with pytest.raises(BundleError, match="no such folder"):
        reference(sac_host, f"{tmp_path / 'none'}:fp16")
    with pytest.raises(BundleError, match=r"no bundle\.json"):
        reference(sac_host, str(tmp_path))
    with pytest.raises(BundleError, match="no early_exit graph in int8; it has"):
        reference(sac_host, "int8")


@pytest.mark.parametrize("name", ["fp16", "torch"])
def test_a_name_with_two_meanings_is_refused(sac_host, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=rf"also names.*\n.*\./{name}"):
        reference(sac_host, name)


@pytest.mark.parametrize("against", ["fp32", "fp32@onnxruntime", "folder", "folder:fp32"])
def test_itself_is_refused(sac_host, against):
    with pytest.raises(ConfigError, match="with itself"):
        reference(sac_host, against.replace("folder", str(sac_host.path)))


def test_another_network_is_refused(sac_host, golden_bundle, dense_bundle):
    with pytest.raises(ConfigError, match=r"different networks: .*classes 16 and 7"):
        reference(sac_host, str(golden_bundle.path))
    with pytest.raises(ConfigError, match="different networks: stages 1 and 2"):
        reference(sac_host, str(dense_bundle.path))


def test_the_checkpoint_of_another_network_is_refused(sac_host, tmp_path):
    other = strong_model(OTHER_CHOICES.replace(embed_dim=48))
    save_checkpoint(tmp_path / "other.safetensors", other.state_dict(), other.config)
    with pytest.raises(CheckpointError):
        reference(sac_host, str(tmp_path / "other.safetensors"))


def test_classes_in_another_order_are_refused(sac_host, sac_graph):
    candidate = of_bundle(sac_host)
    labels = tuple(reversed(candidate.labels))
    with pytest.raises(ConfigError, match="another order: class 0 is"):
        reference(sac_host, str(sac_graph.path), dataclasses.replace(candidate, labels=labels))
    # Other names are the user's to answer for: one export may have had no --labels.
    named = dataclasses.replace(candidate, labels=tuple("abcdefg"))
    assert reference(sac_host, str(sac_graph.path), named).bundle == sac_graph
