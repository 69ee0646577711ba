"""One child process per resident model: framing, the child, its supervisor."""
