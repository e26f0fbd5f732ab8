import pytest
from tiny_study import tiny_data, tiny_model

from normwise.study.tasks import make_task


@pytest.fixture
def task():
    """Three classes of 6 × 6 images, 72 to train on."""
    return make_task(tiny_model, tiny_data(), "tiny")
