"""Songs: MIDI in and out, keys and pitches, piano rolls, sound."""
