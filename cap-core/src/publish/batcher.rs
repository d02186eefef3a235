pub(crate) struct Batcher;
