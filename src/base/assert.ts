// Assertions: our own bugs. A failed assertion stops the process (or worker) that found it; it is never caught
// to be answered to a guest or an operator. Messages are constants: building one on a hot path costs more than the check.

export class AssertionError extends Error {
  override name = 'AssertionError';
}

export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new AssertionError(message);
}

export function unreachable(message: string): never {
  throw new AssertionError(message);
}
