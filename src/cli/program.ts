// All that the program `zazen` has in common for its verbs, to be imported at once when it begins (main.ts).

export { main } from './front-door.ts';
export { runProcess } from './process.ts';
export { services } from './services.ts';
