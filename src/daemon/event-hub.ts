// Events of all domains of a host, those to come included, for those that follow them as they come: one subscription to
// the host, handed on to any number of followers.

import type { EventSubscription, Host, HostEvent } from '../host/types.ts';

const HISTORY_MAX = 1000;

export class EventHub {
  readonly #events: EventSubscription<HostEvent>;
  readonly #followers = new Set<(event: HostEvent) => void>();
  readonly #history: HostEvent[] = [];

  constructor(host: Host) {
    this.#events = host.events();
    void this.#relay();
  }

  async #relay(): Promise<void> {
    for await (const event of this.#events) {
      this.#history.push(event);
      if (this.#history.length > HISTORY_MAX) this.#history.shift();
      for (const follower of this.#followers) follower(event);
    }
  }

  /** The latest events, oldest first. */
  history(): readonly HostEvent[] {
    return [...this.#history];
  }

  /** @returns ends it */
  follow(follower: (event: HostEvent) => void): () => void {
    this.#followers.add(follower);
    return () => void this.#followers.delete(follower);
  }

  close(): void {
    this.#followers.clear();
    void this.#events.return();
  }
}
