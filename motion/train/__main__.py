"""``accelerate launch -m motion.train``: train or fine-tune a motion tokenizer."""

import sys

from motion.train.run import main

sys.exit(main())
