// the landmarks of an answer: go there, move, absent
import { app, attempt, element, lengths, make } from './app'
import { type Point, server } from './server'

let chosen: number | null = null

export function showPoints(points: Point[]): void {
  if (chosen !== null && chosen >= points.length) chosen = null
  app.scene.points(points, chosen)
  element('points').hidden = !points.length
  element('points').replaceChildren(...points.map(row))
}

export function forgetPoint(): void {
  chosen = null
}

function row({ name, position, radius }: Point, index: number): HTMLElement {
  const place = position ? lengths(position) : 'absent'
  const texts = [name, place, radius === null ? '' : `± ${lengths([radius])}`]
  const tools = make('td', {},
    tool('move', `move ${name} to the crosshair`, index, () => app.scene.place?.mm ?? null),
    tool('absent', `${name} is absent`, index, () => null))
  return make('tr', {
    className: index === chosen ? 'chosen' : '',
    onclick: () => {
      chosen = index
      if (position) app.scene.go(position)
      showPoints(app.answer?.points ?? [])
    },
  }, ...texts.map((textContent) => make('td', { textContent })), tools)
}

function tool(textContent: string, title: string, index: number, place: () => number[] | null): HTMLButtonElement {
  const change = attempt(async () => {
    const [answer, to] = [app.answer, place()]
    if (!answer) return
    answer.points = await server.move(app.current, index, to)
    chosen = index
    showPoints(answer.points)
  })
  return make('button', { textContent, title, ariaLabel: title, onclick: (event) => { event.stopPropagation(); change() } })
}
