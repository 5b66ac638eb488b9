"""A teacher on the CPU runs in channels_last where it can, with the same labels."""

import pytest
import torch
from torch import nn

from labelstore.catalogue.records import TeacherRow
from labelstore.teachers.labeller import Labeller
from labelstore.teachers.teacher import Teacher

ROW = TeacherRow(
    name="own", source="own", architecture="own", digest="0" * 64, num_classes=5, input_size=32,
    mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), interpolation="bilinear", crop_pct=0.875,
)  # fmt: skip


class Viewing(nn.Module):
    """Counts on the usual order in memory, as many own networks do."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4))
        self.classifier = nn.Linear(8 * 8 * 8, 5)
        self.layouts = []

    def forward(self, crops):
        self.layouts.append(crops.is_contiguous(memory_format=torch.channels_last))
        features = self.features(crops)
        return self.classifier(self.flat(features))

    def flat(self, features):
        return features.view(len(features), -1)


class Flattening(Viewing):
    def flat(self, features):
        return features.flatten(1)


@pytest.mark.parametrize(
    ("network", "layouts"), [(Flattening, [True] * 3), (Viewing, [True, False, False, False])]
)
def test_labels_are_the_same_in_either_layout(network, layouts):
    torch.manual_seed(0)
    module = network().eval()
    pixels = torch.randint(0, 256, (3, 6, 3, 32, 32), dtype=torch.uint8)
    wanted = [module((batch / 255 - 0.5) / 0.25).detach() for batch in pixels]
    module.layouts.clear()
    labeller = Labeller(Teacher(module=module, row=ROW), None, device="cpu")
    for batch, outputs in zip(pixels, wanted, strict=True):
        torch.testing.assert_close(labeller.logits(batch), outputs, rtol=1e-4, atol=1e-5)
    assert module.layouts == layouts
    # the network is still its owner's to train
    module.requires_grad_(True)(torch.zeros(1, 3, 32, 32)).sum().backward()


def test_an_error_of_the_network_is_its_own():
    class Failing(Viewing):
        def flat(self, features):
            raise RuntimeError("expected 3 tokens")

    labeller = Labeller(Teacher(module=Failing().eval(), row=ROW), None, device="cpu")
    with pytest.raises(RuntimeError, match="expected 3 tokens"):
        labeller.logits(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
