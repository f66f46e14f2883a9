// What the two halves of a paravirtual device say of themselves in the store (io/xenbus.h).

/** xenbus_state. */
export const XENBUS = { initialising: 1, initWait: 2, initialised: 3, connected: 4, closing: 5, closed: 6 } as const;
