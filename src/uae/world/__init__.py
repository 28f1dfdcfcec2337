"""The embedded world: scenes, their language, and models that learn them on two cores."""
