"""The embedded world: scenes, their language, and models small enough to learn them on two
cores."""
