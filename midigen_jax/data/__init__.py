"""From a folder of MIDI files to a corpus on disk, and from there to batches."""
