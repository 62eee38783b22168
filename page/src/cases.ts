// the list of images: thumbnails, search, order, what is wrong with them
import { app, element, former, make, say } from './app'
import { server } from './server'

let found: Record<string, string[]> = {}
let open: (id: number) => void = () => undefined

/** Who opens an image that is clicked on. */
export function showsCases(opens: (id: number) => void): void {
  open = opens
}

/** What `voxelry doctor` says of an image, once it was asked. */
export const findings = (id: number): string[] => found[id] ?? []

export function listCases(): void {
  const wanted = element<HTMLInputElement>('search').value.toLowerCase()
  const cases = app.state.cases.filter(({ name }) => name.toLowerCase().includes(wanted))
  const unsure = (id: number) => app.state.answers[id]?.uncertainty ?? -1
  if (element<HTMLSelectElement>('order').value === 'unsure') cases.sort((a, b) => unsure(b.id) - unsure(a.id))
  const items = cases.map(({ id, name }) => item(id, name))
  element('cases').replaceChildren(...items)
  document.querySelector('#cases [aria-current=true]')?.scrollIntoView({ block: 'nearest' })
}

/** The images in the order of the list. */
export const listed = (): number[] => [...document.querySelectorAll<HTMLElement>('#cases button')].map((one) => Number(one.dataset.id))

function item(id: number, name: string): HTMLElement {
  const told: [string, string, boolean][] = [
    ['!', findings(id).join('; '), findings(id).length > 0],
    ['✎', 'kept as a label', app.state.kept.includes(id)],
    ['✓', 'predicted', id in app.state.answers && !former(app.state.answers[id])],
    ['↻', 'predicted by the former model', former(app.state.answers[id])],
  ]
  const marks = told.filter(([, , on]) => on)
  const title = [name, ...marks.map(([, text]) => text)].join(', ')
  const button = make('button', { title, ariaCurrent: String(id === app.current), onclick: () => open(id) },
    make('img', { src: server.thumbnail(id), alt: '', loading: 'lazy', width: 32, height: 32 }),
    make('span', { textContent: name }),
    make('small', { textContent: marks.map(([sign]) => sign).join(' ') }))
  button.dataset.id = String(id)
  return make('li', {}, button)
}

/** Ask what is wrong with all of them. */
export async function checkCases(): Promise<void> {
  const button = element<HTMLButtonElement>('check')
  button.disabled = true
  try {
    const { job } = await server.check()
    const { state, message, answer } = await server.checked(job, ({ done, total }) => say(total ? `checking ${done} of ${total}` : 'checking'))
    if (state === 'failed') throw new Error(message)
    if (answer) found = answer
    const count = Object.keys(found).length
    say(count ? `${count} of ${app.state.cases.length} images have something wrong; a ! marks them` : 'nothing is wrong with these images')
    listCases()
  } finally {
    button.disabled = false
  }
}
