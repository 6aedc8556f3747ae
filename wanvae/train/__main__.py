"""``accelerate launch -m wanvae.train``: train or fine-tune a video VAE."""

import sys

from wanvae.train.run import main

sys.exit(main())
