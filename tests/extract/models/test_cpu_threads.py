import pytest
import torch

from pathseg.extract.models.cpu_threads import CPU_THREADS, fixed_threads
from pathseg.extract.models.load import load_model


@pytest.fixture
def threads():
    """Sets PyTorch's threads and puts them back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_the_number_is_put_back(threads):
    threads(3)
    with fixed_threads(torch.device("cpu")):
        assert torch.get_num_threads() == CPU_THREADS
    assert torch.get_num_threads() == 3


def test_features_do_not_depend_on_the_threads_of_the_process(threads):
    images = torch.randint(0, 256, (2, 256, 256, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model, found = load_model("mini"), []
    for number in (1, 2, 4):
        threads(number)
        found.append(model.features(images))
    for other in found[1:]:
        assert all(torch.equal(other[block], found[0][block]) for block in found[0])
