// What a request is refused with. An XsError never leaves this room: the wire answers it with an ERROR message, and the
// toolstack's own calls turn it into a ZazenError.

import type { XsErrno } from '../abi/xenstore-wire.ts';

export class XsError extends Error {
  override name = 'XsError';
  readonly errno: XsErrno;

  constructor(errno: XsErrno) {
    super(errno);
    this.errno = errno;
  }
}
