"""The recurrent networks and pictures of claims 6 and 9."""

import base64
import io

import pytest
import torch
from PIL import Image

from normwise.claims.about_style import half_contrast, png, whole
from normwise.claims.recurrent import SpeakerNet, WriterNet
from normwise.nn import norm_layer
from normwise.study.tasks.textures import _pieces


def padded(fill):
    torch.manual_seed(0)
    lengths = torch.tensor([29, 7, 12, 20])
    x = torch.randn(4, 12, 29)
    real = torch.arange(29) < lengths.unsqueeze(1)
    return x.where(real.unsqueeze(1), torch.tensor(fill)), lengths


@pytest.mark.parametrize("method", ["none", "batch", "layer"])
def test_masked_states_do_not_see_padding(method):
    torch.manual_seed(1)
    net = SpeakerNet(norm_layer(method), 12, 9, masked=True).train()
    first, second = (net(*padded(fill)) for fill in (0.0, 5.0))
    assert torch.equal(first, second)


def test_padding_counts_as_data_without_masks():
    torch.manual_seed(1)
    net = SpeakerNet(norm_layer("batch"), 12, 9, masked=False).train()
    first, second = (net(*padded(fill)) for fill in (0.0, 5.0))
    assert (first - second).abs().max() > 0.01
    layer = SpeakerNet(norm_layer("layer"), 12, 9, masked=False)
    assert torch.equal(layer(*padded(0.0)), layer(*padded(5.0)))


def test_a_masked_batch_is_that_of_the_utterances_going_on():
    torch.manual_seed(1)
    net = SpeakerNet(norm_layer("batch"), 12, 9, masked=True).train()
    x, lengths = padded(0.0)
    # Until the shortest ends, all go on: the states are those without padding.
    short = net.states(x[:, :, :7])
    assert torch.allclose(net.states(x, torch.arange(29) < lengths.unsqueeze(1))[:, :7], short, atol=1e-4)


def test_writing_does_not_look_ahead():
    torch.manual_seed(1)
    net = WriterNet(norm_layer("layer"), 8, 20)
    tokens = torch.randint(0, 20, (2, 6))
    later = tokens.clone()
    later[:, 4:] = 0
    assert torch.allclose(net(tokens)[:, :, :4], net(later)[:, :, :4])


def test_pictures_are_what_was_given():
    picture = torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(0))
    with Image.open(io.BytesIO(base64.b64decode(png(picture)))) as opened:
        read = torch.frombuffer(bytearray(opened.convert("RGB").tobytes()), dtype=torch.uint8).reshape(9, 7, 3)
    assert torch.equal(read, (picture * 255).round().to(torch.uint8).permute(1, 2, 0))


def test_pieces_are_joined_as_they_were_cut():
    photograph = torch.rand(3, 120, 168, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole(_pieces(photograph))[0], photograph[:, :96, :96])
    with pytest.raises(ValueError, match="do not form a square"):
        whole(torch.rand(4, 3, 8, 8))


def test_half_the_contrast_keeps_the_mean():
    pictures = torch.rand(2, 3, 8, 8)
    pale = half_contrast(pictures)
    assert torch.allclose(pale.mean((2, 3)), pictures.mean((2, 3)))
    assert torch.allclose(pale.std((2, 3)), pictures.std((2, 3)) / 2)
