"""Who drafts how long a block, and how much of a draft is verified, for most tokens a second: docs/controller.md."""
