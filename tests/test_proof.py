"""Accuracy of a packed file, and the proof that its answers are the trained network's."""

import hashlib
import json
import struct

import pytest
import torch

from sparsign.evaluation import accuracy, proof


def test_top1_is_the_share_of_right_answers():
    answers = torch.tensor([[0.0, 1, 0], [2, 1, 0], [0, 0, 3], [1, 0, 0]])
    assert accuracy.top1(answers, torch.tensor([1, 1, 2, 0])) == 0.75


@pytest.mark.parametrize("count", [None, 1, 3, 4, 5, 9, 10, 99])
def test_limit_takes_the_first_images_only(count):
    images, labels = torch.arange(10.0).view(10, 1, 1, 1), torch.arange(10)
    batches = list(zip(images.split(4), labels.split(4), strict=True))
    answers, truth = accuracy.logits(lambda x: x.flatten(1), accuracy.limited(batches, count))
    assert truth.tolist() == list(range(10))[:count]
    assert answers.flatten().tolist() == truth.tolist()


def test_top5_needs_more_than_five_classes():
    answers = torch.arange(12.0).view(2, 6)
    assert accuracy.top5(answers, torch.tensor([0, 1])) == 0.5
    assert accuracy.top5(answers[:, :5], torch.tensor([0, 1])) is None


def test_no_images_is_an_error():
    with pytest.raises(ValueError, match="no test images"):
        accuracy.logits(lambda x: x, [])


def test_digest_is_sha256_of_little_endian_uint16():
    predictions = [0, 1, 9, 255, 256, 999]
    expected = hashlib.sha256(struct.pack("<6H", *predictions)).hexdigest()[:32]
    assert proof.digest(torch.tensor(predictions)) == expected


def test_proof_survives_json_to_the_last_bit():
    answers = torch.randn(20, 10) * torch.logspace(-3, 3, 10)
    found = proof.check(json.loads(json.dumps(proof.make(answers))), answers)
    assert found["identical_predictions"] and found["bit_equal"] and found["max_logit_error"] == 0.0


def test_proof_sees_one_changed_prediction_anywhere():
    answers = torch.randn(20, 10)
    kept, other = proof.make(answers), answers.clone()
    other[19, (answers[19].argmax() + 1) % 10] = 100.0
    result = proof.check(kept, other)
    assert (result["identical_predictions"], result["bit_equal"], result["max_logit_error"]) == (False, False, 0.0)


def test_proof_leaves_out_close_calls_and_says_which():
    answers = torch.zeros(50, 3)
    answers[:, 1] = 10
    answers[7, 2] = 9.9995
    kept, other = proof.make(answers), answers.clone()
    assert (kept["close"], kept["epsilon"]) == ([7], 1e-3)
    other[7, 2] = 10.0005
    found = proof.check(kept, other)
    assert (found["identical_predictions"], found["bit_equal"], found["compared_images"]) == (True, False, 49)
    other[8, 2] = 10.0005  # its margin was wide
    assert not proof.check(kept, other)["identical_predictions"]


@pytest.mark.parametrize("spread", [1e-7, 1e-3, 1.0])
def test_a_hardly_trained_network_leaves_out_few(spread):
    kept = proof.make(1 + spread * torch.rand(1000, 10))
    assert len(kept["close"]) <= proof.MOST_CLOSE


def test_proof_measures_the_largest_error_of_the_kept_logits():
    answers = torch.zeros(20, 3)
    answers[:, 1] = 5
    other = answers.clone()
    other[0, 2] = -0.25
    other[1, 2] = -3  # not among the kept
    assert proof.check(proof.make(answers), other)["max_logit_error"] == 0.25


def test_proof_on_fewer_images_compares_the_first():
    answers = torch.randn(40, 4)
    kept = proof.make(answers)
    for count, compared in ((5, 5), (30, proof.FIRST)):
        found = proof.check(kept, answers[:count])
        assert (found["identical_predictions"], found["compared_images"], found["bit_equal"]) == (True, compared, None)
        other = answers[:count].clone()
        other[4] = -other[4]
        assert not proof.check(kept, other)["identical_predictions"]


def test_a_diverged_network_is_named_as_such():
    with pytest.raises(ValueError, match="training diverged"):
        proof.make(torch.tensor([[0.0, float("inf")]]))


@pytest.mark.parametrize(
    "change",
    [{"logits": [[1.0]]}, {"logits": [1.0] * 9}, {"logits": []}, {"first": None}, {"first": [7]}, {"close": ["x"]}],
)
def test_malformed_proofs_are_refused(change):
    answers = torch.randn(4, 3)
    with pytest.raises(ValueError, match="the packed file's proof is malformed"):
        proof.check({**proof.make(answers), **change}, answers)
