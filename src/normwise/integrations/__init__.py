"""Normwise inside other people's tools; each module needs its package, and is imported only when asked for.

``lightning`` and ``transformers`` hold callbacks for training, ``timm`` and ``torchvision`` build their networks with
the layers of any method. Trackers need no module: :class:`normwise.watch` takes them as ``writer=``.
"""
