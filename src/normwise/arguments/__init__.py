"""What ``compare``, ``diagnose``, ``advise`` and ``calibrate`` take: data, losses, optimizers, metrics and methods.

Each word is read here and nowhere else, so that it means the same in all four, from Python and from the command line.
"""
