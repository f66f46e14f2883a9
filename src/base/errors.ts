// Operator errors: what a person or program asked for cannot be done. Each has a stable code, one clear line, and a
// hint that says what to do about it. Our own bugs are assertions (assert.ts); a guest's faults never leave the guest.

export class ZazenError extends Error {
  override name = 'ZazenError';
  /** Stable, e.g. `ZAZEN_KERNEL_TRUNCATED`; callers may match on it. */
  readonly code: string;
  /** What the operator can do, if that is not plain from the message. */
  readonly hint: string | undefined;

  constructor(code: string, message: string, options?: { hint?: string; cause?: unknown }) {
    super(oneLine(message), options?.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.hint = options?.hint === undefined ? undefined : oneLine(options.hint);
  }
}

/** Messages quote what people typed, names of files and words of other programs, with whatever is in them. */
function oneLine(text: string): string {
  return text.trim().replaceAll(/\p{Cc}+/gu, '?');
}

/** A wrong command line: reported with exit status 2 rather than 1. */
export class UsageError extends ZazenError {
  override name = 'UsageError';
  constructor(message: string, hint = 'see: zazen --help') {
    super('ZAZEN_USAGE', message, { hint });
  }
}

/** Values that no host takes, whenever it is asked. */
const NEVER_RIGHT = /^ZAZEN_(SPEC_.*|DISK_SPEC|NIC_SPEC|MEMORY_SIZE|HOST_MEMORY_SIZE|COMMAND_INVALID)$/;

/** Whether the words were wrong, rather than the moment or the machine. */
export function isWrongUsage(error: ZazenError): boolean {
  return error instanceof UsageError || NEVER_RIGHT.test(error.code);
}

/** Of an error of the system's: its name, such as ENOSPC. */
export const errnoOf = (error: unknown): string | undefined => (error as NodeJS.ErrnoException | null)?.code;
