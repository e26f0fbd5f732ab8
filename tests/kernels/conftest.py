"""What is collected only where Triton's interpreter is on: ``test_triton.py`` runs it so, in a process of its own."""

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") else ["interpreted.py"]
