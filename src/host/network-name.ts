// Apart from the networks themselves, so that who only names one need not load them.

/** The network of a card for which none is named. */
export const DEFAULT_NETWORK = 'default';
