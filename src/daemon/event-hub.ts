// Events of all domains of a host, those to come included: one subscription a domain, any number of followers, each
// with a queue of its own. A follower that does not read is told so and let go; it holds up nobody.

import type { Domain, DomainEvent, Host } from '../host/types.ts';

export type NamedEvent = DomainEvent & { readonly name: string };

const HISTORY_MAX = 1000;

export class EventHub {
  readonly #host: Host;
  readonly #known = new Set<Domain>();
  readonly #followers = new Set<(event: NamedEvent) => void>();
  readonly #history: NamedEvent[] = [];
  readonly #unwatch: () => void;

  constructor(host: Host) {
    this.#host = host;
    // The store tells of a domain while it is being made: when that is done, the host has it.
    this.#unwatch = host.store.watch('@introduceDomain', () => queueMicrotask(() => this.#findDomains()));
    this.#findDomains();
  }

  #findDomains(): void {
    for (const domain of this.#host.domains()) {
      if (this.#known.has(domain)) continue;
      this.#known.add(domain);
      void this.#relay(domain);
    }
  }

  async #relay(domain: Domain): Promise<void> {
    for await (const event of domain.events()) {
      const named = { ...event, name: domain.name };
      this.#history.push(named);
      if (this.#history.length > HISTORY_MAX) this.#history.shift();
      for (const follower of this.#followers) follower(named);
    }
    this.#known.delete(domain);
  }

  /** The latest events, oldest first. */
  history(): readonly NamedEvent[] {
    return [...this.#history];
  }

  /** @returns ends it */
  follow(follower: (event: NamedEvent) => void): () => void {
    this.#followers.add(follower);
    return () => void this.#followers.delete(follower);
  }

  close(): void {
    this.#unwatch();
    this.#followers.clear();
  }
}
