import pytest
import torch
from torch import nn

from pathseg.store.grid import PatchGrid
from pathseg.train.heads.inference import class_codes, class_probabilities, predict, score
from pathseg.train.heads.linear import LinearHead
from pathseg.train.heads.pixel_ensemble import PixelEnsemble

ONE = torch.tensor([3.0, 1.0, 2.0]).reshape(1, 3, 1, 1)


@pytest.mark.parametrize(("ignore", "code"), [(None, 0), (0, 2), (255, 0)])
def test_the_ignored_class_is_never_predicted(ignore, code):
    assert class_codes(ONE, ignore).tolist() == [[[code]]]
    assert class_codes(ONE, ignore).dtype == torch.uint8


def test_of_equal_scores_the_first_class_is_taken():
    scores = torch.randint(0, 3, (2, 5, 40, 40), generator=torch.Generator().manual_seed(0)).float()
    assert (class_codes(scores, None).numpy() == scores.numpy().argmax(axis=1)).all()


def test_probabilities_are_the_softmax_over_the_classes_that_are_not_ignored():
    found = class_probabilities(ONE, 0).flatten()
    torch.testing.assert_close(found, torch.tensor([0.0, *torch.tensor([1.0, 2.0]).softmax(0)]))
    torch.testing.assert_close(class_probabilities(ONE, 255), ONE.softmax(1))
    assert ONE.flatten().tolist() == [3.0, 1.0, 2.0]  # the scores are left as they are


class Constant(nn.Module):
    """Scores that record the blocks and the dtype of a product inside the head."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1))

    def forward(self, features, patch_grid):
        self.blocks, self.dtype = list(features), (self.weight @ self.weight).dtype
        return torch.arange(3.0).reshape(1, 3, 1, 1).expand(1, 3, 2, 2) * self.weight


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_head_gets_its_own_blocks_and_computes_in_the_precision_of_its_run(precision, dtype):
    head, maps = Constant(), {block: torch.zeros(1, 1, 2, 4, 4) for block in (4, 5, 9)}
    scores = score(head, maps, PatchGrid(1, 1), layers=(5, 9), precision=precision)
    assert (head.blocks, head.dtype, scores.dtype) == ([5, 9], dtype, torch.float32)
    assert scores.requires_grad


def test_a_prediction_holds_the_scores_of_all_classes_and_codes_without_the_ignored_one():
    maps = {4: torch.randn((1, 2, 6, 16, 16), generator=torch.Generator().manual_seed(0))}
    torch.manual_seed(0)
    head = LinearHead({4: 6}, 3).eval()
    found = predict(head, maps, PatchGrid(1, 2), layers=(4,), ignore=1)
    torch.testing.assert_close(found.scores, head(maps, (1, 2)))
    assert set(found.labels.unique().tolist()) == {0, 2}
    assert found.uncertainty is None
    assert found.shares is None


def test_an_ensemble_predicts_by_its_votes_and_gives_its_uncertainty():
    maps = {4: torch.randn((1, 1, 6, 8, 8), generator=torch.Generator().manual_seed(0))}
    head = PixelEnsemble({4: 6}, 3).eval()
    found = predict(head, maps, PatchGrid(1, 1), layers=(4,), precision="bfloat16", ignore=1)
    assert found.uncertainty.shape == (1, 256, 256)
    assert found.shares.shape == (1, 3, 256, 256)
    assert (found.shares[:, 1] == 0).all()
    assert (found.labels == found.shares.argmax(1)).all()
